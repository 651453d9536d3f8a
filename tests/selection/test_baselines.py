"""The baselines choose as the papers that they are from say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.selection import SelectionConfig, select
from hf_prune.selection.hardness import HARDER_IS
from hf_prune.selection.methods.ccs import ccs, evenly
from hf_prune.selection.problem import read_problem
from tests.selection.scored import scored, with_scores

LABEL = np.repeat([0, 1, 2, 2], 100)
SCORES = {
    "el2n": "el2n",
    "grand": "grand",
    "forgetting": "forgetting",
    "aum": "aum",
    "loss": "loss",
    "tdds": "variability",
}


@pytest.mark.parametrize("method", SCORES)
def test_score_methods_keep_the_hardest_rows_of_each_class(method):
    dataset = with_scores(scored(label=LABEL))
    kept = np.isin(np.arange(400), select(dataset, 0.5, method=method).keep_indices)
    hard = HARDER_IS[SCORES[method]] * np.array(dataset[SCORES[method]])
    for label in range(3):
        assert kept[label == LABEL].mean() == 0.5
        assert hard[kept & (label == LABEL)].min() >= hard[~kept & (label == LABEL)].max()


def test_ties_of_a_score_are_broken_by_the_seed():
    dataset = with_scores(scored())
    first, again, other = (
        select(dataset, 0.5, method="forgetting", seed=seed).keep_indices.tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("method", [*SCORES, "ccs"])
def test_a_missing_score_names_add_scores(method):
    missing = SCORES.get(method, "aum")
    with pytest.raises(ValueError, match=f"no column '{missing}': make it with `add_scores"):
        select(scored(), 0.5, method=method)


def test_tdds_says_what_stands_in_for_its_variance():
    notes = select(with_scores(scored()), 0.5, method="tdds").certificate.notes
    assert any("stands in for its windowed variance" in note for note in notes)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.floats(0, 1))
def test_strata_share_the_budget_evenly_and_spend_it_all(sizes, share):
    sizes = np.array(sizes)
    budget = int(share * sizes.sum())
    kept = evenly(sizes, budget)
    assert kept.sum() == budget
    assert (kept <= sizes).all()
    short = kept < sizes  # strata that could give more: all of them give as many, up to one row
    if short.any():
        assert kept[short].max() - kept[short].min() <= 1
        assert kept[~short].max(initial=0) <= kept[short].max() + 1


def test_ccs_cuts_the_hardest_and_covers_the_rest():
    aum = np.concatenate([np.linspace(-1, 0, 300), np.linspace(0, 4, 700) ** 3 / 16])
    data = read_problem(with_scores(scored(1000), aum=aum), "influence", None)
    kept = ~ccs(data, 500, SelectionConfig(keep=0.5), cut=0.2).dropped
    assert kept.sum() == 500
    assert not kept[:200].any()  # the lowest margins
    counts, edges = np.histogram(aum[200:], bins=50)
    covered = np.histogram(aum[kept], bins=edges)[0]
    small = counts <= 5
    np.testing.assert_array_equal(covered[small], counts[small])  # strata with few rows are kept whole


def test_ccs_takes_el2n_where_there_is_no_margin_and_says_so():
    dataset = with_scores(scored()).remove_columns("aum")
    selection = select(dataset, 0.2, method="ccs")
    hardest = np.argsort(dataset["el2n"])[-40:]
    assert any("CCS by el2n: the hardest 10%" in note for note in selection.certificate.notes)
    assert not np.isin(hardest, selection.keep_indices).any()


def _features(rows: int = 120, seed: int = 0, **columns):
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 2
    x = rng.normal(size=(rows, 3)).astype("float32") + 4 * label[:, None].astype("float32")
    return scored(rows, label=label, classes=2, **columns).add_column("x", x.tolist()), x, label


def test_moderate_keeps_the_rows_nearest_to_the_median_distance():
    dataset, x, label = _features()
    kept = select(dataset, 0.5, method="moderate", features="x").keep_indices
    for code in (0, 1):
        rows = np.flatnonzero(label == code)
        distance = np.linalg.norm(x[rows] - x[rows].mean(axis=0), axis=1)
        nearest = rows[np.argsort(np.abs(distance - np.median(distance)))[:30]]
        assert set(nearest) == set(kept[label[kept] == code])


def test_herding_takes_at_each_step_the_row_that_brings_the_mean_nearest():
    dataset, x, label = _features(40)
    kept = select(dataset, 0.2, method="herding", features="x").keep_indices
    for code in (0, 1):
        rows, chosen = np.flatnonzero(label == code), []
        for _ in range(4):
            left = [row for row in rows if row not in chosen]
            gaps = [np.linalg.norm(x[[*chosen, row]].mean(axis=0) - x[rows].mean(axis=0)) for row in left]
            chosen.append(left[int(np.argmin(gaps))])
        assert set(chosen) == set(kept[label[kept] == code])


def test_kcenter_takes_at_each_step_the_farthest_row():
    dataset, x, label = _features(40)
    kept = select(dataset, 0.2, method="kcenter", features="x").keep_indices
    for code in (0, 1):
        rows = np.flatnonzero(label == code)
        chosen = [rows[np.linalg.norm(x[rows] - x[rows].mean(axis=0), axis=1).argmin()]]
        for _ in range(3):
            gaps = np.linalg.norm(x[rows][:, None] - x[chosen][None], axis=2).min(axis=1)
            chosen.append(rows[gaps.argmax()])
        assert set(chosen) == set(kept[label[kept] == code])


@pytest.mark.parametrize("method", ["moderate", "herding", "kcenter"])
def test_rows_that_are_equal_are_still_chosen_once_each(method):
    dataset, _, _ = _features(influence=np.ones((120, 8)))
    assert len(select(dataset, 0.5, method=method).keep_indices) == 60


@pytest.mark.parametrize("method", ["moderate", "herding", "kcenter"])
def test_without_features_influence_stands_in_but_not_its_audit_directions(method):
    dataset = scored(200)
    influence = np.array(dataset["influence"], dtype="float32")
    influence[:, 12:] = np.random.default_rng(0).normal(size=(200, 4))
    norm = np.array(dataset["influence_norm"], dtype="float32")
    first, other = (
        select(data, 0.3, method=method) for data in (dataset, scored(200, influence=influence, influence_norm=norm))
    )
    np.testing.assert_array_equal(first.keep_indices, other.keep_indices)
    assert any("influence vectors instead of features" in note for note in first.certificate.notes)


@pytest.mark.parametrize("method", ["moderate", "herding", "kcenter"])
def test_distances_need_no_classes(method):
    selection = select(scored(100).remove_columns("label"), 0.3, method=method)
    assert selection.certificate.kept == 30
