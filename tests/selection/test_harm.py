"""Harmful rows: found by a rule that is told, dropped before all others, within the budget, and reported."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_prune.selection import Certificate, prune, prune_path, select
from hf_prune.selection.harm import RULE, find
from hf_prune.selection.problem import read_problem
from tests.selection.scored import scored, with_scores

WRONG = np.arange(0, 400, 10)


def _dataset():
    """Rows of negative margin, of which half would be missed by each of the other two signs alone."""
    aum = np.random.default_rng(0).uniform(0.5, 3.0, 400)
    aum[WRONG] = -np.linspace(0.1, 2.0, 40)
    loss, removal = np.full(400, 2.0), np.full(400, -0.01)  # of rows with a good margin these say nothing
    loss[WRONG[::2]], removal[WRONG[1::2]] = 0.5, 0.01
    return with_scores(scored(influence_eval_loss=removal.astype("float32")), aum=aum, loss=loss)


def test_hard_rows_that_neither_sign_speaks_against_are_kept():
    aum = np.where(np.isin(np.arange(400), WRONG), -1.0, 1.0)
    removal = np.full(400, 0.01, dtype="float32")
    for loss, named in ((1.05, 0), (1.15, 40)):  # a guess among 3 classes has a loss of 1.0986
        dataset = with_scores(scored(influence_eval_loss=removal), aum=aum, loss=np.full(400, loss))
        assert find(read_problem(dataset, "influence", None)).found == named
        assert find(read_problem(dataset, "influence", False)).found == named


def test_without_held_out_rows_or_classes_the_margin_decides():
    aum = np.where(np.isin(np.arange(400), WRONG), -1.0, 1.0)
    dataset = with_scores(scored(), aum=aum).remove_columns(["influence_eval_loss", "label"])
    assert find(read_problem(dataset, "influence", None)).found == 40


def test_harmful_rows_go_first_and_are_named():
    selection = select(_dataset(), 0.5, harmful="drop")
    assert np.isin(WRONG, selection.drop_indices).all()
    assert len(selection.drop_indices) == 200
    harm = selection.certificate.harm
    assert (harm.rule, harm.found, harm.dropped) == (RULE, 40, tuple(WRONG.tolist()))
    text = selection.certificate.explain()
    assert "Harmful rows: 40 found, 40 dropped first (ids 0, 10, 20" in text
    assert RULE in text


def test_harmful_rows_are_kept_by_default_and_not_spoken_of():
    selection = select(_dataset(), 0.5)
    assert selection.certificate.harm is None
    assert "Harmful" not in selection.certificate.explain()
    assert "harm" not in selection.certificate.to_dict()


@pytest.mark.parametrize("method", ["influence", "random", "el2n", "ccs"])
def test_no_more_rows_go_than_were_asked_for_and_the_worst_go_first(method):
    selection = select(_dataset(), 390, harmful="drop", method=method)
    np.testing.assert_array_equal(selection.drop_indices, WRONG[-10:])
    assert selection.certificate.harm.found == 40
    assert selection.certificate.harm.dropped == tuple(WRONG[-10:].tolist())


def test_the_rows_that_are_left_are_balanced_among_themselves():
    dataset = _dataset()
    kept = select(dataset, 0.5, harmful="drop", difficulty=None).keep_indices
    left = np.setdiff1d(np.arange(400), WRONG)
    influence = np.array(dataset["influence"])[:, :12]
    gap = np.linalg.norm(influence[kept].mean(axis=0) - influence[left].mean(axis=0))
    drawn = np.random.default_rng(0)
    random = [
        np.linalg.norm(influence[drawn.permutation(left)[:200]].mean(axis=0) - influence[left].mean(axis=0))
        for _ in range(20)
    ]
    assert gap < 0.1 * np.mean(random)


def test_a_class_that_was_not_learned_is_not_taken_for_errors():
    label = np.repeat([0, 1], 200)
    aum = np.where(label == 0, -1.0, 1.0)
    aum[350] = -3.0
    dataset = with_scores(scored(label=label, classes=2), aum=aum, loss=np.full(400, 3.0))
    assert find(read_problem(dataset, "influence", None)).found == 1
    assert find(read_problem(dataset, "influence", False)).found == 201


def test_epsilon_and_a_path_drop_harmful_rows_too():
    dataset = _dataset()
    unit = select(dataset, 0.5, method="random").certificate.random_shift.mean
    selection = select(dataset, epsilon=2 * unit, harmful="drop")
    assert np.isin(WRONG, selection.drop_indices).all()
    path = prune_path(dataset, [0.05, 0.5], nested=True, harmful="drop")
    assert set(path[0.05].selection.drop_indices) <= set(WRONG)
    assert np.isin(WRONG, path[0.5].selection.drop_indices).all()
    assert path[0.5].selection.certificate.harm.dropped == tuple(WRONG.tolist())


def test_a_missing_margin_names_add_scores():
    with pytest.raises(ValueError, match="no column 'aum': make it with `add_scores"):
        select(scored(), 0.5, harmful="drop")


def test_the_report_survives_json_and_disk(tmp_path):
    certificate = select(_dataset(), 0.5, harmful="drop").certificate
    values = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert Certificate.from_dict(values) == certificate
    selection = prune(_dataset(), 0.5, harmful="drop").selection
    selection.save(tmp_path / "selection")
    assert type(selection).load(tmp_path / "selection") == selection
