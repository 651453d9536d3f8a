"""Difficulty: which of the balanced subsets is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_prune.selection import difficulty, select
from tests.selection.scored import scored


def _ranks(dataset, **kwargs) -> np.ndarray:
    kept = select(dataset, 0.3, **kwargs).keep_indices
    return np.argsort(np.argsort(dataset["influence_norm"]))[kept] / (len(dataset) - 1)


def test_a_quantile_keeps_the_rows_near_it():
    dataset = scored(1200, k=8)
    for quantile in (0.2, 0.5, 0.8):
        ranks = _ranks(dataset, difficulty=quantile)
        assert abs(np.median(ranks) - quantile) < 0.08
        assert np.mean(np.abs(ranks - quantile) < 0.2) > 0.8


def test_no_preference_keeps_rows_of_every_difficulty():
    ranks = _ranks(scored(1200, k=8), difficulty=None)
    assert np.histogram(ranks, bins=5, range=(0, 1))[0].min() > 0.5 * len(ranks) / 5


def helping(dataset: Dataset, sign: float = 1.0) -> Dataset:
    """The dataset with hard rows that lower the held-out loss, or raise it."""
    effect = sign * np.array(dataset["influence_norm"], dtype="float32")
    return dataset.remove_columns("influence_eval_loss").add_column("influence_eval_loss", effect)


def _preference(dataset: Dataset, keep: float) -> dict[str, Any]:
    return select(dataset, keep).resolved["difficulty"]


def _saturated() -> Dataset:
    """Few influential rows, which lower the held-out loss."""
    return _with_effect(scored(1200, k=8, tail=1.0), 1.0)


def _with_effect(dataset: Dataset, sign: float) -> Dataset:
    """The dataset with hard rows that lower the held-out loss, or raise it."""
    effect = sign * np.array(dataset["influence_norm"], dtype="float32")
    return dataset.remove_columns("influence_eval_loss").add_column("influence_eval_loss", effect)


def _preference(dataset: Dataset, keep: float) -> dict[str, Any]:
    return select(dataset, keep).resolved["difficulty"]


def _nearness(dataset: Dataset, kept: np.ndarray, among: np.ndarray) -> float:
    """How far the kept rows' mean influence is from that of the rows `among`, in units of random rows'."""
    labels, vectors = np.array(dataset["label"]), np.array(dataset["influence"])[:, :6]
    found = []
    for code in range(3):
        every, own = among[labels[among] == code], kept[labels[kept] == code]
        center = vectors[every].mean(axis=0)
        drawn = [np.random.default_rng(seed).permutation(every)[: len(own)] for seed in range(20)]
        chance = np.mean([np.linalg.norm(vectors[rows].mean(axis=0) - center) for rows in drawn])
        found.append(np.linalg.norm(vectors[own].mean(axis=0) - center) / chance)
    return float(max(found))


@pytest.mark.parametrize(("buckets", "near"), [(1, 0.2), (3, 0.5)])
def test_auto_keeps_the_hardest_of_a_saturated_model_and_represents_the_rest(buckets: int, near: float):
    dataset = _saturated()
    share = difficulty.influential_share(np.array(dataset["influence_norm"]))
    hard = difficulty.automatic(share, 0.5).hard
    assert 0.1 < hard < difficulty.HARD_MOST
    selection = select(dataset, 0.5, buckets=buckets)
    kept, labels = selection.keep_indices, np.array(dataset["label"])
    assert selection.resolved["difficulty"]["kind"] == "cover"
    hardest = []
    for code in range(3):
        rows = np.flatnonzero(labels == code)
        count = int(hard * (labels[kept] == code).sum())
        hardest.append(rows[np.argsort(-np.array(dataset["influence_norm"])[rows])[:count]])
    hardest = np.concatenate(hardest)
    assert np.isin(hardest, kept).all()
    assert _nearness(dataset, np.setdiff1d(kept, hardest), np.setdiff1d(np.arange(1200), hardest)) < near


def test_auto_leaves_the_hardest_out_where_all_rows_matter_and_represents_the_rest():
    dataset = scored(1200, k=8, tail=0.1)
    kept = select(dataset, 0.3).keep_indices
    ranks = np.argsort(np.argsort(dataset["influence_norm"])) / 1199
    left = np.flatnonzero(ranks <= 1 - difficulty.CUT)
    assert np.isin(kept, left).all()
    assert _nearness(dataset, kept, left) < 0.1


def test_auto_leaves_the_hardest_out_where_they_harm():
    dataset = scored(1200, k=8, tail=1.0)
    helps, harms = (_preference(_with_effect(dataset, sign), 0.5) for sign in (1.0, -1.0))
    assert (helps["cut"], harms["hard"]) == (0.0, 0.0)
    assert min(helps["hard"], harms["cut"]) > 0.1
    assert _preference(dataset.remove_columns("influence_eval_loss"), 0.5) == helps


def test_harm_has_to_be_clear():
    norm = np.arange(1.0, 401.0)
    effect = np.tile([1.0, -1.0], 200)
    effect[-1] = -2.0  # the hardest tenth: a sum of -1, with a standard error of 6.4
    assert difficulty.hard_rows_help(norm, effect)
    assert not difficulty.hard_rows_help(norm, effect - 0.2)
    assert difficulty.hard_rows_help(norm, None)


def test_a_cover_keeps_hard_rows_of_a_class_that_has_too_few_others():
    norm = np.concatenate([np.linspace(1, 2, 200), np.linspace(3, 4, 20)])
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(220, 4)) * norm[:, None]
    dataset = scored(220, k=4, classes=2, influence=vectors, label=np.repeat([0, 1], [200, 20]))
    selection = select(dataset, 0.8)
    assert selection.resolved["difficulty"]["cut"] > 0
    assert np.bincount(np.array(dataset["label"])[selection.keep_indices]).tolist() == [160, 16]


def test_with_less_room_fewer_hard_rows_are_kept_and_a_cut_is_a_part_of_what_goes():
    hard = [difficulty.automatic(0.2, rate).hard for rate in (0.1, 0.5, 0.7, 0.9)]
    cuts = [difficulty.automatic(0.9, rate).cut for rate in (0.1, 0.3, 0.9)]
    assert hard == sorted(hard, reverse=True)
    assert (hard[0], hard[-1]) == (difficulty.HARD_MOST, 0.0)
    assert cuts == [0.05, 0.15, difficulty.CUT]


def test_within_a_bound_auto_prefers_nothing():
    dataset = _saturated()
    assert select(dataset, epsilon=1e-3).resolved["difficulty"]["kind"] == "none"


@pytest.mark.parametrize(("norm", "share"), [([1.0] * 8, 1.0), ([0.0] * 7 + [3.0], 1 / 8), ([0.0] * 8, 1.0)])
def test_influential_share_counts_the_rows_that_matter(norm, share):
    assert difficulty.influential_share(np.array(norm, dtype="float32")) == pytest.approx(share)


def test_what_auto_saw_is_in_the_certificate():
    notes = select(scored(tail=1.5), 0.5).certificate.notes
    assert any(note.startswith("Difficulty auto") and "effective" in note for note in notes)


def test_ties_are_broken_by_the_seed_but_no_order_is_turned():
    norm = np.repeat([1.0, 2.0, 3.0], 50).astype("float32")
    preference = difficulty.choose(1.0, norm, None, 0.5)
    costs = [difficulty.cost(preference, norm, np.random.default_rng(seed)) for seed in (0, 1)]
    assert not np.array_equal(*costs)
    for cost in costs:
        assert cost[:50].max() < cost[50:100].min()
        assert cost[50:100].max() < cost[100:].min()
    norm = np.random.default_rng(2).permutation(500).astype("float32")
    cost = difficulty.cost(difficulty.choose(1.0, norm, None, 0.5), norm, np.random.default_rng(0))
    np.testing.assert_array_equal(np.argsort(cost), np.argsort(norm))
