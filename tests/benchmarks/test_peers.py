"""The truth that methods are measured against in the benchmarks, and the measures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

pytest.importorskip("sklearn")

from peers import ours
from peers.measures import fidelity, linear_datamodeling_score, of_sets, reliability
from peers.recorded import Run, record
from peers.study import Answers, _left_out, key_of
from peers.tasks import mlp
from peers.truth import LeftOut, leave_out, random_groups, subsets


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return record(mlp(96, 8, request.param), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def truth(run: Run) -> LeftOut:
    return leave_out(run, [np.array([row]) for row in range(6)] + random_groups(96, 0.1, 2, seed=0))


def test_a_window_run_again_is_the_recorded_run(truth: LeftOut):
    assert truth.reproduced < 1e-5


def test_leaving_out_nothing_changes_nothing(run: Run):
    nothing = np.array([], dtype=np.int64)
    assert np.abs(leave_out(run, [nothing, np.array([0])]).shifts[0]).max() < 1e-6


def test_rows_that_are_left_out_are_predicted_by_the_sweep(run: Run, truth: LeftOut):
    found = fidelity(of_sets(ours.scores([run], mode="visits"), truth.sets), truth.shifts, truth.base)
    assert found["margin_r"] > 0.9


def test_sweeps_of_dattri_llm_are_ours_where_they_say_the_same(run: Run, truth: LeftOut):
    """Of SGD, or with v frozen, both are sweeps with the Fisher matrix; theirs has the parameters of every step."""
    pytest.importorskip("dattri_llm")
    from peers import dattri_llm_

    method = dattri_llm_.adamw_influence_frozen if run.moments else dattri_llm_.dvemb
    theirs = of_sets(method([run], run.first), truth.sets)
    found = fidelity(theirs, of_sets(ours.scores([run], mode="visits", curvature="fisher"), truth.sets), truth.base)
    assert found["margin_r"] > 0.99
    assert found["margin_error"] < 0.1


def test_another_optimizers_run_is_no_run_of_adamw(run: Run):
    pytest.importorskip("dattri_llm")
    from peers import dattri_llm_

    if run.moments:
        run = replace(run, moments={name: torch.zeros_like(value) for name, value in run.moments.items()})
    with pytest.raises(RuntimeError, match="this optimizer"):
        dattri_llm_.adamw_influence([run], run.first)


def test_what_an_earlier_result_has_is_not_measured_again(run: Run):
    kinds = {"rows": [np.array([row]) for row in range(3)], "pairs": [np.array([row, row + 1]) for row in range(3)]}
    [rows, pairs] = [key_of(row) for row in _left_out(run, kinds, ("none",), Answers({}), frozenset())]
    assert [key_of(row) for row in _left_out(run, kinds, ("none",), Answers({}), frozenset({rows}))] == [pairs]


def test_the_setting_of_a_method_is_no_part_of_its_key():
    row = {"run": "mlp/sgd", "question": "LDS", "method": "TRAK (traker), ridge 10"}
    assert key_of(row) == ("mlp/sgd", "LDS", "TRAK (traker)")
    assert key_of(row | {"method": "hf_prune, exact"})[2] == "hf_prune, exact"


def test_models_trained_on_halves_differ_by_seed_and_rows(run: Run):
    halves = subsets(run.task, 3, 2)
    flat = halves.margins.reshape(6, -1)
    assert halves.margins.shape == (3, 2, 8)
    assert len(np.unique(flat.round(6), axis=0)) == 6


def test_scores_that_made_the_margins_have_an_lds_of_one():
    generator = np.random.default_rng(0)
    effects = generator.normal(size=(40, 5))
    sets = [generator.permutation(40)[:20] for _ in range(30)]
    margins = np.stack([[-effects[rows].sum(0)] * 2 for rows in sets])
    assert linear_datamodeling_score(effects, sets, margins) == pytest.approx(1.0)
    assert reliability(margins) == pytest.approx(1.0)
    assert linear_datamodeling_score(-effects, sets, margins) == pytest.approx(-1.0)


def test_perfect_predictions_have_no_error():
    generator = np.random.default_rng(0)
    shifts, base = generator.normal(size=(6, 5)), generator.normal(size=5)
    found = fidelity(shifts, shifts, base)
    assert found["margin_r"] == found["loss_r"] == found["row_rho"] == pytest.approx(1.0)
    assert found["margin_error"] == found["loss_error"] == 0.0
