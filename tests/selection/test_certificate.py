"""The certificate: figures that can be worked out by hand, beside those of random subsets."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from hf_prune._core.config import ScoringConfig, SelectionConfig
from hf_prune._core.records import ScoringRecord
from hf_prune._core.scoring import with_scoring
from hf_prune.selection import Certificate, select
from hf_prune.selection.certificate import Spread, _random_masks, certify
from hf_prune.selection.evidence import Candidate, Evidence
from hf_prune.selection.methods.random import random
from tests.selection.scored import problem, scored


def test_the_shift_is_the_reweighted_sum_of_centred_influence():
    dataset = scored()
    selection = select(dataset, 0.6)
    influence = np.array(dataset["influence"], dtype=np.float64)
    shift = 400 / 240 * (influence - influence.mean(axis=0))[selection.drop_indices].sum(axis=0)
    certificate = selection.certificate
    assert certificate.predicted_shift == pytest.approx(np.linalg.norm(shift), rel=1e-5)
    assert certificate.solver_residual == pytest.approx(np.linalg.norm(shift[:12]) * np.sqrt(16 / 12), rel=1e-5)
    assert certificate.audit_residual == pytest.approx(np.linalg.norm(shift[12:]) * 2, rel=1e-5)


def test_the_shift_is_what_weighted_retraining_gives_on_a_linear_model():
    # a mean is its own "training": leaving row i out of the sum shifts it by -x_i / n, and the kept rows' mean is
    # what retraining gives
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype("float32")
    data = problem(False, rows=200, influence=-x / 200)
    dropped = np.arange(200) < 80
    truth = x[~dropped].mean(axis=0) - x.mean(axis=0)
    assert data.shift(dropped) == pytest.approx(np.linalg.norm(truth), rel=1e-4)


def test_the_loss_change_is_what_reweighting_gives():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200) + 3.0
    data = problem(False, rows=200, influence_eval_loss=(-values / 200).astype("float32"))
    dropped = np.arange(200) < 80
    certificate = certify(data, dropped, method="test", seed=0)
    truth = values[~dropped].mean() - values.mean()
    assert certificate.predicted_eval_loss_change == pytest.approx(truth, rel=1e-4)
    assert abs(certificate.random_eval_loss_change.mean) < certificate.random_eval_loss_change.sd


def test_a_window_speaks_for_the_whole_run_and_shifts_cost_by_curvature():
    losses = np.linspace(-1, 1, 200).astype("float32")
    data, dropped = problem(False, rows=200, influence_eval_loss=losses), np.arange(200) < 80
    plain = certify(data, dropped, method="test", seed=0)
    known = ScoringRecord(ScoringConfig(), recorded_share=0.5, held_out_curvature=0.2)
    whole = certify(data, dropped, method="test", seed=0, scoring=known)
    second = 0.5 * 0.2 * (2 * plain.audit_residual) ** 2
    assert whole.predicted_eval_loss_change == pytest.approx(2 * plain.predicted_eval_loss_change + second)
    assert whole.audit_residual == plain.audit_residual


def test_random_figures_are_those_of_random_subsets():
    data = problem(False, rows=1000)
    certificate = certify(data, np.arange(1000) < 400, method="test", seed=0)
    rng = np.random.default_rng(5)
    shifts = []
    for _ in range(200):
        mask = np.zeros(1000, dtype=bool)
        mask[rng.choice(1000, 400, replace=False)] = True
        shifts.append(data.shift(mask))
    error = np.std(shifts) / np.sqrt(32)
    assert abs(certificate.random_shift.mean - np.mean(shifts)) < 4 * error
    assert certificate.random_shift.sd == pytest.approx(np.std(shifts), rel=0.5)


def test_of_a_random_subset_all_residuals_estimate_the_shift():
    c = certify(problem(False, rows=1000, k=64), np.arange(1000) < 400, method="test", seed=0)
    assert c.random_solver_residual.mean == pytest.approx(c.random_shift.mean, rel=0.15)
    assert c.random_audit_residual.mean == pytest.approx(c.random_shift.mean, rel=0.15)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_method_random_is_not_compared_with_itself(seed):
    data = problem(False)
    own = random(data, 200, SelectionConfig(keep=0.5, seed=seed)).dropped
    assert not any(np.array_equal(own, mask) for mask in _random_masks(400, 200, seed))


def test_the_method_random_is_as_good_as_random_subsets():
    ratios = [select(scored(), 0.5, method="random", seed=seed).certificate.audit_ratio for seed in range(20)]
    assert 0.7 < np.mean(ratios) < 1.3


def test_without_eval_loss_nothing_is_said_of_it():
    certificate = select(scored().remove_columns("influence_eval_loss"), 0.5).certificate
    assert certificate.predicted_eval_loss_change is None
    assert certificate.random_eval_loss_change is None
    assert "held-out loss" not in certificate.explain()


@pytest.mark.parametrize("dataset", [scored(), scored(k=3).remove_columns(["label", "influence_eval_loss"])])
def test_a_certificate_survives_json(dataset):
    certificate = select(dataset, 0.5).certificate
    text = json.dumps(certificate.to_dict(), allow_nan=False)
    assert Certificate.from_dict(json.loads(text)) == certificate


def test_unknown_and_missing_fields_are_named():
    values = select(scored(), 0.5).certificate.to_dict()
    with pytest.raises(ValueError, match=r"differ from this version's \(\['bound'\]\)"):
        Certificate.from_dict(values | {"bound": 1})
    del values["kept"]
    with pytest.raises(ValueError, match=r"\['kept'\]"):
        Certificate.from_dict(values)


def test_explain_says_everything_in_plain_words():
    certificate = select(scored(), 0.5).certificate
    text = certificate.explain()
    for part in (
        "Kept 200 of 400 rows (50.0%), method influence.",
        "random subsets of this size",
        "RMS shift of a held-out logit vector",
        "the 4 of 16 directions the solver never saw",
        "times random's",
        "change of the held-out loss",
        "Classes (label): class 0",
        "error of the prediction grows",
    ):
        assert part in text


def test_few_directions_and_an_optimised_sketch_are_warned_of():
    assert any("none is left for an audit" in note for note in select(scored(k=3), 0.5).certificate.notes)
    assert any("read the audit residual" in note for note in select(scored(), 0.5, difficulty=None).certificate.notes)
    assert not any("audit residual" in note for note in select(scored(), 0.5, method="random").certificate.notes)


def test_units_and_what_is_not_known_come_from_the_scoring():
    dataset = scored()
    assert any("unit is assumed" in note for note in select(dataset, 0.5).certificate.notes)
    record = ScoringRecord(ScoringConfig(space="parameters"))
    selection = select(with_scoring(dataset, record), 0.5)
    assert selection.certificate.units == "L2 shift of the trained parameters"
    assert selection.scoring == record
    assert not any("unit is assumed" in note for note in selection.certificate.notes)


def test_a_subset_that_is_worse_than_all_random_ones_on_the_audit_directions_is_told():
    dataset = scored(1200)
    last = np.array(dataset["influence"])[:, -1]
    one_sided = certify(problem(rows=1200), last > np.median(last), method="test", seed=0)
    assert any("above that of all 32 random subsets" in note for note in one_sided.notes)
    for options in ({"method": "random"}, {"difficulty": None}):
        notes = select(dataset, 0.5, **options).certificate.notes
        assert not any("above that of all" in note for note in notes)


def certified(change: float, *, method: str = "influence", **fields) -> Certificate:
    """A certificate whose audit residual is so many standard deviations from that of random subsets."""
    certificate = select(scored(), 0.5).certificate
    random = Spread(1.0, 0.1)
    return replace(
        certificate,
        method=method,
        audit_residual=1 + 0.1 * change,
        audit_ratio=1 + 0.1 * change,
        random_audit_residual=random,
        predicted_eval_loss_change=1 + 0.1 * change,
        random_eval_loss_change=random,
        **fields,
    )


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        (certified(-5), "Predicted to be better than random rows, not tested: .* moves 0.50 times as far"),
        (certified(-1), "Not predicted to be better than random rows, and not tested"),
        (certified(4), "Predicted to represent all rows less well than random rows do, not tested"),
        (certified(0, method="random"), "These are random rows"),
        (certified(-5, method="target"), "Predicted to serve the task better than random rows, not tested"),
        (certified(1, method="less"), "Not predicted to serve the task better than random rows, and not tested"),
        (select(scored(k=3), 0.5).certificate, "Whether .* neither predicted nor tested"),
        (select(scored(), 400).certificate, "All rows were kept"),
    ],
)
def test_the_first_line_says_whether_it_is_better_than_random_and_by_what_evidence(certificate, said):
    assert re.match(said, certificate.explain().splitlines()[0])
    assert re.search(said, certificate._repr_html_())


@pytest.mark.parametrize(
    ("gain", "said"), [(0.05, "Better than"), (0.01, "Not told apart from"), (-0.05, "Worse than")]
)
def test_a_probe_is_the_evidence_where_there_is_one(gain, said):
    taken = Candidate("balanced", 0.88, gain, 0.01, 0.0, 0.0, 3)
    best = Candidate("hardest", 0.9, 0.05, 0.03, 0.02, 0.005, 3)
    evidence = Evidence("accuracy", "epochs", 200, "0" * 64, 12, 6.0, (best, taken), "balanced", beats_random=False)
    words = replace(select(scored(), 0.5).certificate, evidence=evidence).explain().splitlines()[0]
    assert re.match(f"{said} as many random rows", words)
    assert "probe's retraining" in words
    assert "over 3 seeds on 200 held-out rows" in words
