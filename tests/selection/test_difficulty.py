"""Difficulty: which of the balanced subsets is taken."""

from __future__ import annotations

import numpy as np
import pytest

from hf_prune.selection import difficulty, select
from tests.selection.scored import scored, with_scores


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


def test_auto_keeps_a_band_where_there_is_room_for_the_influential_rows():
    dataset = scored(1200, k=8, tail=1.0)
    share = difficulty.influential_share(np.array(dataset["influence_norm"]))
    ranks = _ranks(dataset)
    expected = difficulty.BAND_START + difficulty.BAND_SLOPE * 0.3 / share
    assert expected < 0.85, "the band must lie within the ranks"
    assert abs(np.median(ranks) - expected) < 0.1
    assert select(dataset, 0.3).arguments["resolved"]["difficulty"]["kind"] == "band"


def test_auto_covers_where_there_is_no_room_for_them():
    preference = difficulty.automatic(0.3, 0.9)
    assert (preference.kind, preference.cut) == ("cut", difficulty.SCARCE_CUT)


def test_auto_cuts_the_hardest_rows_where_all_rows_matter():
    dataset = scored(1200, k=8, tail=0.1)
    ranks = _ranks(dataset)
    cut = difficulty.CUT_SLOPE * 0.7
    assert np.mean(ranks > 1 - cut) < 0.02
    assert np.histogram(ranks, bins=4, range=(0, 1 - cut))[0].min() > 0.5 * len(ranks) / 4


def test_the_band_falls_and_the_cut_grows_with_the_rate():
    bands = [difficulty.automatic(0.2, rate).quantile for rate in (0.1, 0.5, 0.7)]
    cuts = [difficulty.automatic(0.9, rate).cut for rate in (0.1, 0.5, 0.9)]
    assert bands == sorted(bands, reverse=True)
    assert cuts == sorted(cuts)
    assert all(0 <= value <= 1 for value in bands + cuts)


@pytest.mark.parametrize(("norm", "share"), [([1.0] * 8, 1.0), ([0.0] * 7 + [3.0], 1 / 8), ([0.0] * 8, 1.0)])
def test_influential_share_counts_the_rows_that_matter(norm, share):
    assert difficulty.influential_share(np.array(norm, dtype="float32")) == pytest.approx(share)


def test_what_auto_saw_is_in_the_certificate():
    notes = select(scored(tail=1.5), 0.5).certificate.notes
    assert any(note.startswith("Difficulty auto") and "effective" in note for note in notes)


def test_ties_are_broken_by_the_seed_but_no_order_is_turned():
    norm = np.repeat([1.0, 2.0, 3.0], 50).astype("float32")
    preference = difficulty.choose(1.0, norm, 0.5)
    costs = [difficulty.cost(preference, norm, np.random.default_rng(seed)) for seed in (0, 1)]
    assert not np.array_equal(*costs)
    for cost in costs:
        assert cost[:50].max() < cost[50:100].min()
        assert cost[50:100].max() < cost[100:].min()
    norm = np.random.default_rng(2).permutation(500).astype("float32")
    cost = difficulty.cost(difficulty.choose(1.0, norm, 0.5), norm, np.random.default_rng(0))
    np.testing.assert_array_equal(np.argsort(cost), np.argsort(norm))


def test_far_from_saturation_margins_decide_what_is_cut_where_there_are_any():
    aum = np.random.default_rng(0).normal(size=1200)
    dataset = with_scores(scored(1200, k=8, tail=0.1), aum=aum)
    selection = select(dataset, 0.3)
    assert selection.arguments["resolved"]["difficulty"]["by"] == "aum"
    hardest = np.argsort(aum)[: int(0.35 * 1200)]
    assert np.isin(hardest, selection.drop_indices).mean() > 0.98
    saturated = with_scores(scored(1200, k=8, tail=1.5), aum=aum)
    assert select(saturated, 0.3).arguments["resolved"]["difficulty"]["by"] == "influence_norm"


def test_margins_that_some_rows_lack_are_left_aside():
    aum = np.zeros(400)
    aum[7] = np.nan
    dataset = scored(tail=0.1)
    np.testing.assert_array_equal(
        select(with_scores(dataset, aum=aum), 0.5).keep_indices, select(dataset, 0.5).keep_indices
    )
