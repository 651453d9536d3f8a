"""Difficulty: which of the balanced subsets is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_prune.selection import difficulty, select
from hf_prune.selection.problem import read_problem
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
    return select(dataset, keep).arguments["resolved"]["difficulty"]


def test_auto_keeps_a_band_where_there_is_room_for_the_influential_rows():
    dataset = helping(scored(1200, k=8, tail=1.0))
    share = difficulty.influential_share(np.array(dataset["influence_norm"]))
    ranks = _ranks(dataset)
    expected = difficulty.BAND_START + difficulty.BAND_SLOPE * (0.3 / share - 1)
    assert difficulty.BAND_START < expected < 0.85, "the band must lie within the ranks"
    assert abs(np.median(ranks) - expected) < 0.1
    assert _preference(dataset, 0.3)["kind"] == "band"


def test_auto_covers_where_there_is_no_room_for_them():
    preference = difficulty.automatic(0.3, 0.9)
    assert (preference.kind, preference.cut) == ("cover", difficulty.CUT)


def test_auto_covers_where_hard_rows_harm():
    dataset = scored(1200, k=8, tail=1.0)
    assert _preference(helping(dataset), 0.5)["kind"] == "band"
    assert _preference(helping(dataset, -1.0), 0.5)["kind"] == "cover"
    assert _preference(dataset.remove_columns("influence_eval_loss"), 0.5)["kind"] == "band"


def test_auto_leaves_the_hardest_rows_out_and_represents_the_others_where_all_rows_matter():
    dataset = scored(1200, k=8, tail=0.1)
    ranks = _ranks(dataset)
    assert np.mean(ranks > 1 - difficulty.CUT_FAR) == 0
    labels, vectors = np.array(dataset["label"]), np.array(dataset["influence"])[:, :6]
    kept = select(dataset, 0.3).keep_indices
    left = np.argsort(np.argsort(dataset["influence_norm"])) <= (1 - difficulty.CUT_FAR) * 1199
    for code in range(3):
        every, own = np.flatnonzero(left & (labels == code)), kept[labels[kept] == code]
        center = vectors[every].mean(axis=0)
        drawn = [np.random.default_rng(seed).permutation(every)[: len(own)] for seed in range(20)]
        chance = np.mean([np.linalg.norm(vectors[rows].mean(axis=0) - center) for rows in drawn])
        assert np.linalg.norm(vectors[own].mean(axis=0) - center) < 0.1 * chance


def test_a_cover_keeps_hard_rows_of_a_class_that_has_too_few_others():
    norm = np.concatenate([np.linspace(1, 2, 200), np.linspace(3, 4, 20)])
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(220, 4)) * norm[:, None]
    dataset = scored(220, k=4, classes=2, influence=vectors, label=np.repeat([0, 1], [200, 20]))
    selection = select(dataset, 0.8)
    assert selection.arguments["resolved"]["difficulty"]["kind"] == "cover"
    assert np.bincount(np.array(dataset["label"])[selection.keep_indices]).tolist() == [160, 16]


def test_the_mean_influence_is_free_in_the_band_of_auto_and_nowhere_else():
    dataset = helping(scored(1200, k=8, tail=1.0))
    problem = read_problem(dataset, "influence", None)
    along = problem.mean[:6] / np.linalg.norm(problem.mean[:6])
    everything = np.arange(1200)
    assert np.abs(problem.with_free_mean().solver_vectors(everything) @ along).max() < 1e-9
    residuals = {}
    for chosen in ("auto", 1.0):
        dropped = np.isin(everything, select(dataset, 0.5, difficulty=chosen).drop_indices)
        total = problem.centred_sums(dropped[None])[0, :6]
        residuals[chosen] = abs(total @ along), np.linalg.norm(total - (total @ along) * along)
    assert residuals["auto"][0] > 20 * residuals[1.0][0]
    assert residuals["auto"][1] < 0.05 * residuals["auto"][0]


def test_the_band_falls_with_the_rate_and_a_cover_cuts_less_than_goes():
    bands = [difficulty.automatic(0.2, rate).quantile for rate in (0.1, 0.5, 0.7)]
    cuts = [difficulty.automatic(0.9, rate).cut for rate in (0.1, 0.3, 0.9)]
    assert bands == sorted(bands, reverse=True)
    assert cuts == [0.05, 0.15, difficulty.CUT_FAR]


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
