"""What a selection is made of, on rows so few that it can be written down in plain numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune._core.config import SelectionConfig
from hf_prune.selection import difficulty, harm, select
from hf_prune.selection.choice import class_codes, drop_counts, drop_largest, ranks
from hf_prune.selection.distances import herd
from hf_prune.selection.problem import Problem, read_problem
from hf_prune.selection.representation import Representation
from tests.selection.scored import problem, scored, with_scores

SEEDS = st.integers(0, 10**6)


def with_features(features: np.ndarray, **settings) -> Problem:
    dataset = scored(len(features), **settings)
    return problem_of(dataset.add_column("influence_features", features.astype("float32").tolist()))


def problem_of(dataset, balance=None) -> Problem:
    return read_problem(dataset, "influence", balance)


@settings(max_examples=15)
@given(n=st.integers(8, 30), seed=st.integers(0, 1000), some=st.floats(0.1, 1))
def test_rows_are_represented_in_three_spaces_of_equal_length(n: int, seed: int, some: float):
    features = np.random.default_rng(seed).normal(size=(n, 3)) * [1.0, 5.0, 0.2] + 7
    data = with_features(features, k=8, seed=seed)
    rows = np.random.default_rng(seed).permutation(n)[: max(1, int(some * n))]
    influence = np.array(data.dataset["influence"])[:, :6]
    lengths = np.linalg.norm(influence, axis=1)
    centred = features - features.mean(axis=0)
    spaces = [influence, influence / np.sqrt(lengths)[:, None], centred]
    spaces = [space / np.sqrt((space**2).sum(axis=1).mean()) for space in spaces]
    found = Representation.of(data).take(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate(spaces, axis=1)[rows], rtol=1e-4, atol=1e-5)


def test_rows_without_influence_and_features_without_spread_are_represented_by_zeros():
    data = with_features(np.ones((8, 2)), k=4, influence=np.zeros((8, 4)))
    assert not Representation.of(data).take(np.arange(8)).any()
    without = problem(rows=8, k=4)
    assert Representation.of(without).take(np.arange(8)).shape == (8, 6)


@given(seed=st.integers(0, 1000), centred=st.booleans(), share=st.floats(0, 0.9))
@settings(max_examples=25)
def test_sums_shifts_and_parts_of_a_problem_are_those_of_its_rows(seed: int, centred: bool, share: float):
    data = read_problem(with_scores(scored(24, k=8, seed=seed), seed), "influence", None, centred)
    S = np.array(data.dataset["influence"], dtype=np.float64)
    mask = np.zeros(24, dtype=bool)
    mask[np.random.default_rng(seed).permutation(24)[: int(share * 24)]] = True
    mean = S.mean(axis=0) if centred else np.zeros(8)
    total = (S[mask] - mean).sum(axis=0)
    np.testing.assert_allclose(data.centred_sums(np.stack([mask, ~mask]))[0], total, atol=1e-6)
    factor = 24 / (24 - mask.sum()) if centred else 1.0
    assert data.reweight(int(mask.sum())) == pytest.approx(factor)
    assert data.shift(mask) == pytest.approx(factor * np.linalg.norm(total), abs=1e-6)
    assert (data.k, data.audit, data.solver) == (8, 2, 6)
    rows = np.flatnonzero(~mask)
    np.testing.assert_allclose(data.solver_vectors(rows), S[rows, :6] - mean[:6], atol=1e-6)
    part = data.take(rows).take(np.arange(len(rows))[::2])
    own = rows[::2]
    np.testing.assert_allclose(part.mean, S[own].mean(axis=0) if centred else 0, atol=1e-6)
    np.testing.assert_allclose(part.column("el2n"), np.array(data.dataset["el2n"])[own])
    np.testing.assert_allclose(part.table("influence").take(np.arange(len(own))), S[own], rtol=1e-6)
    np.testing.assert_allclose(part.norm, np.array(data.dataset["influence_norm"])[own])
    np.testing.assert_allclose(part.eval_loss, np.array(data.dataset["influence_eval_loss"])[own])
    labels = data.dataset.features["label"].int2str(np.array(data.dataset["label"])[own].tolist())
    assert [part.classes.names[code] for code in part.classes.codes] == labels


@given(seed=SEEDS, n=st.integers(2, 20), share=st.floats(0, 1), balance=st.booleans())
@settings(max_examples=30)
def test_dropping_by_a_score_takes_the_largest_of_each_class(seed: int, n: int, share: float, balance: bool):
    data = problem(None if balance else False, rows=4 * n, k=4, classes=2, seed=seed % 1000)
    dropped = int(share * (data.n - 2))
    score = np.random.default_rng(seed).normal(size=data.n)
    mask = drop_largest(data, dropped, score)
    assert mask.sum() == dropped
    codes, counts = class_codes(data), drop_counts(data, dropped)
    for code, count in enumerate(counts):
        own = np.flatnonzero(codes == code)
        largest = own[np.argsort(-score[own])][:count]
        assert np.array_equal(np.flatnonzero(mask & (codes == code)), np.sort(largest))


@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=10), seed=SEEDS)
def test_ranks_order_by_score_and_equal_ones_by_the_seed(values: list[int], seed: int):
    score = np.array(values)
    found = ranks(score, seed)
    assert sorted(found.tolist()) == list(range(len(score)))
    for i, j in itertools.combinations(range(len(score)), 2):
        if score[i] != score[j]:
            assert (found[i] < found[j]) == (score[i] < score[j])


@given(seed=SEEDS, n=st.integers(2, 15), quantile=st.floats(0, 1))
def test_the_cost_of_a_band_orders_rows_by_their_distance_from_its_quantile(seed: int, n: int, quantile: float):
    norm = np.random.default_rng(seed).permutation(n).astype(float)
    config = SelectionConfig(keep=0.5, difficulty=quantile)
    found = difficulty.cost(difficulty.choose(config), norm, np.random.default_rng(seed))
    away = np.abs(norm / (n - 1) - quantile)  # norms are their own ranks
    for i, j in itertools.combinations(range(n), 2):
        if abs(away[i] - away[j]) > 0.5 / n + 1e-9:
            assert (found[i] < found[j]) == (away[i] > away[j])
    assert (np.abs(found + away) <= 0.5 / n + 1e-9).all()


@given(
    seed=SEEDS, sizes=st.lists(st.integers(2, 12), min_size=1, max_size=3), hard=st.floats(0, 1), cut=st.floats(0, 1)
)
def test_hard_rows_are_kept_by_class_and_cut_ones_left_out(seed: int, sizes: list[int], hard: float, cut: float):
    codes = np.repeat(np.arange(len(sizes)), sizes)
    n, kept = len(codes), np.array(sizes) // 2
    norm = np.random.default_rng(seed).permutation(n).astype(float)
    preference = difficulty.choose(SelectionConfig(keep=0.5, hard=hard, cut=cut))
    found = difficulty.represent_cost(preference, norm, codes, kept)
    for code, size in enumerate(sizes):
        own = np.flatnonzero(codes == code)
        sure = own[np.argsort(-norm[own])][: int(np.floor(hard * kept[code]))]
        for row in own:
            left_out = norm[row] / (n - 1) > 1 - cut
            assert found[row] == (np.inf if row in sure else -np.inf if left_out else 0)
        assert size == len(own)


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12), seed=SEEDS)
def test_a_column_is_a_cost_between_0_and_1(values: list[float], seed: int):
    column = np.array(values, dtype=np.float32)
    found = difficulty.cost_of(column, np.random.default_rng(seed))
    span = float(np.ptp(column.astype(np.float64))) or 1.0
    np.testing.assert_allclose(found, (column.astype(np.float64) - column.min()) / span, atol=1.1e-6)
    assert len(set(found)) == len(found) or len(set(values)) < len(values)


@given(seed=st.integers(0, 500), with_loss=st.booleans(), balance=st.booleans())
@settings(max_examples=25)
def test_harmful_rows_are_those_that_the_rule_names(seed: int, with_loss: bool, balance: bool):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 30)
    aum = rng.normal(0.3, 1.0, 30)
    if seed % 3 == 0:
        aum[label == 1] = -1 - rng.random((label == 1).sum())
    dataset = with_scores(scored(30, k=4, label=label, seed=seed), seed, aum=aum)
    dataset = dataset if with_loss else dataset.remove_columns("influence_eval_loss")
    data = problem_of(dataset, None if balance else False)
    loss = np.array(dataset["loss"])
    helped = np.array(dataset["influence_eval_loss"]) < 0 if with_loss else np.zeros(30, dtype=bool)
    bad = (aum < 0) & (helped | (loss > np.log(len(set(label.tolist())))))
    spared = np.zeros(30, dtype=bool)
    if balance:
        for code in range(3):
            if bad[label == code].all():
                spared[label == code] = True
    found = harm.find(data)
    assert found.found == (bad & ~spared).sum()
    lowest = sorted(np.flatnonzero(~spared).tolist(), key=lambda row: aum[row])
    assert found.order[: 30 - spared.sum()].tolist() == lowest
    gone = rng.random(30) < 0.2
    dropped = int(gone.sum()) + 3
    mask = found.first(gone, dropped)
    named = [row for row in lowest[: found.found] if not gone[row]]
    assert np.array_equal(np.flatnonzero(mask & ~gone), np.sort(named[:3]))
    assert found.report(mask).dropped == tuple(sorted(row for row in lowest[: found.found] if mask[row]))
    assert np.array_equal(found.first(gone, 0), gone)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), share=st.floats(0.2, 0.9), hard=st.floats(0, 1), cut=st.floats(0, 0.5))
def test_the_default_represents_each_class_in_the_space_of_its_rows(seed: int, share: float, hard: float, cut: float):
    dataset = scored(40, k=4, classes=2, seed=seed)
    data, norm = problem_of(dataset), np.array(dataset["influence_norm"], dtype=np.float64)
    selection = select(dataset, share, hard=hard, cut=cut, seed=seed)
    codes, kept = class_codes(data), np.isin(np.arange(40), selection.keep_indices)
    gone = norm.argsort().argsort() / 39 > 1 - cut
    for code in (0, 1):
        own, count = np.flatnonzero(codes == code), int(kept[codes == code].sum())
        sure = own[np.argsort(-norm[own])][: int(np.floor(hard * count))]
        free = np.array([row for row in own if row not in sure and not gone[row]], dtype=int)
        if len(sure) + len(free) < count:  # what was to be left out is needed
            free = np.array([row for row in own if row not in sure], dtype=int)
        chosen = free[list(herd(Representation.of(data).take(free), count - len(sure)))]
        assert set(own[kept[own]]) == {*sure, *chosen}
