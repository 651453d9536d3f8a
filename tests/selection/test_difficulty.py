"""Difficulty: which of the balanced subsets is taken."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, List, Value

from hf_prune._core.config import SelectionConfig
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


def _nearness(dataset: Dataset, kept: np.ndarray, among: np.ndarray, column: str = "influence") -> float:
    """How far the kept rows' mean of a column is from that of the rows `among`, in units of random rows'."""
    labels, vectors = np.array(dataset["label"]), np.array(dataset[column])[:, :6]
    found = []
    for code in range(3):
        every, own = among[labels[among] == code], kept[labels[kept] == code]
        center = vectors[every].mean(axis=0)
        drawn = [np.random.default_rng(seed).permutation(every)[: len(own)] for seed in range(20)]
        chance = np.mean([np.linalg.norm(vectors[rows].mean(axis=0) - center) for rows in drawn])
        found.append(np.linalg.norm(vectors[own].mean(axis=0) - center) / chance)
    return float(max(found))


def _with_features(dataset: Dataset, width: int = 6) -> Dataset:
    values = np.random.default_rng(5).normal(size=(len(dataset), width)).astype("float32")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
    return dataset.add_column("influence_features", column, feature=List(Value("float32"), length=width))


@pytest.mark.parametrize(("buckets", "near"), [(1, 0.35), (3, 0.6)])
def test_auto_represents_all_rows_whatever_their_difficulty(buckets: int, near: float):
    dataset = scored(1200, k=8, tail=0.3)
    selection = select(dataset, 0.3, buckets=buckets)
    assert _nearness(dataset, selection.keep_indices, np.arange(1200)) < near
    ranks = np.argsort(np.argsort(dataset["influence_norm"]))[selection.keep_indices] / 1199
    assert np.histogram(ranks, bins=4, range=(0, 1))[0].min() > 0.5 * len(ranks) / 4
    assert "no preference" in selection.certificate.notes[0]


def test_auto_represents_features_too_where_there_are_any():
    dataset = _with_features(scored(1200, k=8, tail=0.3))
    kept = select(dataset, 0.3).keep_indices
    assert _nearness(dataset, kept, np.arange(1200), "influence_features") < 0.35
    blind = select(dataset.remove_columns("influence_features"), 0.3)
    assert _nearness(dataset, blind.keep_indices, np.arange(1200), "influence_features") > 0.6
    assert any("by their influence alone" in note for note in blind.certificate.notes)
    assert not any("by their influence alone" in note for note in select(dataset, 0.3).certificate.notes)


def test_a_few_rows_of_great_influence_do_not_decide():
    dataset = scored(1200, k=8, tail=2.0)  # some rows are a hundred times as long as most
    kept = select(dataset, 0.3).keep_indices
    tempered = np.array(dataset["influence"], dtype="float64")
    tempered /= np.sqrt(np.linalg.norm(tempered[:, :6], axis=1, keepdims=True))
    column = pa.FixedSizeListArray.from_arrays(pa.array(tempered.astype("float32").ravel()), 8)
    assert _nearness(dataset.add_column("tempered", column), kept, np.arange(1200), "tempered") < 0.35


def test_hard_keeps_the_hardest_of_each_class_and_represents_the_rest():
    dataset = scored(1200, k=8, tail=1.0)
    kept, labels = select(dataset, 0.5, hard=0.25).keep_indices, np.array(dataset["label"])
    hardest = []
    for code in range(3):
        rows = np.flatnonzero(labels == code)
        count = int(0.25 * (labels[kept] == code).sum())
        hardest.append(rows[np.argsort(-np.array(dataset["influence_norm"])[rows])[:count]])
    hardest = np.concatenate(hardest)
    assert np.isin(hardest, kept).all()
    assert len(np.intersect1d(kept, hardest)) < len(kept)


def test_cut_leaves_the_hardest_out_as_far_as_counts_allow():
    norm = np.concatenate([np.linspace(1, 2, 200), np.linspace(3, 4, 20)])
    vectors = np.random.default_rng(0).normal(size=(220, 4)) * norm[:, None]
    dataset = scored(220, k=4, classes=2, influence=vectors, label=np.repeat([0, 1], [200, 20]))
    ranks = np.argsort(np.argsort(dataset["influence_norm"])) / 219
    kept = select(dataset, 0.8, cut=0.1).keep_indices
    labels = np.array(dataset["label"])
    assert np.bincount(labels[kept]).tolist() == [160, 16]  # all of class 1 is hard, and keeps its share
    assert ranks[kept[labels[kept] == 0]].max() <= 0.9


def test_preferences_that_exclude_each_other_are_refused():
    for options in ({"difficulty": None}, {"difficulty": 0.5}, {"cost": "influence_norm"}):
        with pytest.raises(ValueError, match="hard and cut say which rows are represented"):
            select(scored(), 0.5, hard=0.5, **options)
    with pytest.raises(ValueError, match=r"cut must be a share in \[0, 1\], not 1.5"):
        select(scored(), 0.5, cut=1.5)
    with pytest.raises(ValueError, match="method='random' does not use hard"):
        select(scored(), 0.5, hard=0.5, method="random")


def test_within_a_bound_auto_prefers_nothing():
    assert select(scored(1200, k=8, tail=1.0), epsilon=1e-3).resolved["difficulty"]["kind"] == "none"


def test_ties_are_broken_by_the_seed_but_no_order_is_turned():
    norm = np.repeat([1.0, 2.0, 3.0], 50).astype("float32")
    preference = difficulty.choose(SelectionConfig(keep=0.5, difficulty=1.0))
    costs = [difficulty.cost(preference, norm, np.random.default_rng(seed)) for seed in (0, 1)]
    assert not np.array_equal(*costs)
    for cost in costs:
        assert cost[:50].max() < cost[50:100].min()
        assert cost[50:100].max() < cost[100:].min()
    norm = np.random.default_rng(2).permutation(500).astype("float32")
    cost = difficulty.cost(preference, norm, np.random.default_rng(0))
    np.testing.assert_array_equal(np.argsort(cost), np.argsort(norm))
