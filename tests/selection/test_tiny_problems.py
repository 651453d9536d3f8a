"""Each step of a selection on problems so small that all answers can be tried, or written down in plain numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_prune.selection import buckets
from hf_prune.selection.annealing import anneal
from hf_prune.selection.classes import Classes, largest_remainder
from hf_prune.selection.distances import herd
from hf_prune.selection.linear import SLACK_COST, solve
from hf_prune.selection.methods.rds import take_turns
from hf_prune.selection.pooling import PENALTIES, pooled
from hf_prune.selection.rounding import LEAST_PER_SIDE, POOL, rank_within, refine, round_to_counts, swap_pool
from hf_prune.selection.vectors import Vectors

SEEDS = st.integers(0, 10**6)


def vectors_of(values: np.ndarray) -> Vectors:
    return Vectors((values.astype(np.float32),), np.array([0, len(values)]))


@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=SEEDS)
def test_ranks_within_groups_are_those_of_a_sort(groups: list[int], seed: int):
    rng, codes = np.random.default_rng(seed), np.array(groups)
    first, second = rng.integers(0, 3, len(codes)), rng.integers(0, 3, len(codes))
    found = rank_within(codes, first, second)
    for row, code in enumerate(codes):
        own = [other for other in range(len(codes)) if codes[other] == code]
        own.sort(key=lambda other: (first[other], second[other], other))
        assert found[row] == own.index(row)


@given(groups=st.lists(st.integers(0, 2), min_size=3, max_size=12), seed=SEEDS, share=st.floats(0, 1))
def test_rounding_drops_the_largest_weights_and_of_equal_ones_the_cheapest(groups: list[int], seed: int, share: float):
    rng, codes = np.random.default_rng(seed), np.array(groups)
    counts = np.floor(share * np.bincount(codes, minlength=3)).astype(int)
    weights, cost = rng.choice([0.0, 0.5, 1.0], len(codes)), rng.random(len(codes))
    weights += rng.choice([-4e-10, 0, 4e-10], len(codes))  # what a solver means by equal
    dropped = round_to_counts(weights, cost, codes, counts)
    assert np.array_equal(np.bincount(codes[dropped], minlength=3), counts)
    for code in range(3):
        gone, stays = (np.flatnonzero((codes == code) & side) for side in (dropped, ~dropped))
        for i, j in itertools.product(gone, stays):
            assert (-weights[i].round(6), cost[i]) < (-weights[j].round(6), cost[j])


@settings(max_examples=30)
@given(seed=SEEDS, n=st.integers(4, 9), d=st.integers(1, 3))
def test_the_program_costs_no_more_than_any_subset_that_balances(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(n, d))
    vectors, codes = np.concatenate([half, -half]), np.tile(np.arange(n) % 2, 2)
    cost, totals = rng.random(2 * n), np.array([2.0, 2.0])
    solution = solve(vectors, cost, codes, totals, np.zeros(d))
    assert solution.exact
    np.testing.assert_allclose(solution.weights @ vectors, 0, atol=1e-6)
    np.testing.assert_allclose(np.bincount(codes, solution.weights), totals, atol=1e-6)
    pairs = [(i, j) for i in range(n) for j in range(n) if codes[i] == 0 and codes[j] == 1]
    least = min(cost[[i, i + n, j, j + n]].sum() for i, j in pairs)  # a row and its opposite of each class
    assert cost @ solution.weights <= least + 1e-6


@settings(max_examples=30)
@given(seed=SEEDS)
def test_where_nothing_balances_the_nearest_point_is_taken_at_the_price_of_imbalance(seed: int):
    rng = np.random.default_rng(seed)
    vectors, cost, codes = np.abs(rng.normal(size=(8, 2))) + 0.1, rng.random(8), np.arange(8) % 2
    totals, target = np.array([1.5, 2.0]), np.array([-1.0, 0.5])
    solution = solve(vectors, cost, codes, totals, target)
    assert not solution.exact
    unit = np.sqrt((vectors**2).mean(axis=0))

    def price(weights: np.ndarray) -> float:
        return float(cost @ weights + SLACK_COST * np.abs((weights @ vectors - target) / unit).sum())

    assert len(solution.reduced_cost) == 8
    assert (solution.reduced_cost[solution.weights > 1 - 1e-9] < 1e-9).all()
    assert (solution.reduced_cost[solution.weights < 1e-9] > -1e-9).all()
    np.testing.assert_allclose(np.bincount(codes, solution.weights), totals, atol=1e-6)
    for _ in range(200):
        other = rng.random(8) * rng.integers(0, 2, 8)
        for code in (0, 1):  # scaled to the totals, where that is possible
            own = codes == code
            other[own] *= totals[code] / max(other[own].sum(), 1e-9)
        if other.max() <= 1 and np.allclose(np.bincount(codes, other), totals):
            assert price(solution.weights) <= price(other) + 1e-6


@given(seed=SEEDS, scale=st.floats(1e-6, 1e6))
def test_the_program_knows_no_unit_of_influence_and_no_dead_direction(seed: int, scale: float):
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(6, 2))
    vectors, cost, codes = np.concatenate([half, -half]), rng.random(12), np.zeros(12, dtype=int)
    plain = solve(vectors, cost, codes, np.array([4.0]), np.zeros(2)).weights
    dead = np.column_stack([scale * vectors, 1e-12 * scale * rng.normal(size=12)])
    again = solve(dead, cost, codes, np.array([4.0]), np.zeros(3))
    assert again.exact
    np.testing.assert_allclose(again.weights, plain, atol=1e-5)


@given(seed=SEEDS, n=st.integers(2, 10), d=st.integers(1, 3))
def test_each_swap_is_the_best_one_there_is(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    vectors, codes, dropped = rng.normal(size=(n, d)), rng.integers(0, 2, n), rng.random(n) < 0.5
    elsewhere = rng.normal(size=d)
    mask, residual = dropped.copy(), vectors[dropped].sum(axis=0) + elsewhere
    while True:
        swaps = [(i, j) for i in range(n) for j in range(n) if mask[i] and not mask[j] and codes[i] == codes[j]]
        lengths = [np.linalg.norm(residual - vectors[i] + vectors[j]) for i, j in swaps]
        if not swaps or min(lengths) >= np.linalg.norm(residual) - 1e-12:
            break
        i, j = swaps[int(np.argmin(lengths))]
        residual = residual - vectors[i] + vectors[j]
        mask[[i, j]] = [False, True]
    found, left = refine(vectors, dropped, codes, vectors[dropped].sum(axis=0) + elsewhere)
    assert np.array_equal(found, mask)
    np.testing.assert_allclose(left, residual, atol=1e-9)


@given(seed=SEEDS, classes=st.integers(1, 80))
def test_rows_that_may_be_swapped_are_shared_out_over_classes_and_sides(seed: int, classes: int):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(classes), 300 // classes + 6)
    dropped, cost = rng.random(len(codes)) < 0.5, rng.normal(size=len(codes))
    pool = swap_pool(cost, dropped, codes)
    assert np.array_equal(pool, np.unique(pool))
    each = max(LEAST_PER_SIDE, POOL // (2 * classes))
    for code in range(classes):
        for side in (False, True):
            own = np.flatnonzero((codes == code) & (dropped == side))
            nearest = own[np.argsort(np.abs(cost[own]), kind="stable")][:each]
            assert np.array_equal(np.intersect1d(own, pool), np.sort(nearest))


@given(seed=SEEDS, n=st.integers(1, 9), d=st.integers(1, 3), equal=st.booleans())
def test_herding_takes_the_row_that_brings_the_mean_nearest(seed: int, n: int, d: int, equal: bool):
    rng = np.random.default_rng(seed)
    vectors = np.round(rng.normal(size=(n, d))) if equal else rng.normal(size=(n, d))
    taken: list[int] = []
    for row in herd(vectors, n):
        left = [other for other in range(n) if other not in taken]
        assert row in left
        gaps = {o: np.linalg.norm(vectors[[*taken, o]].mean(axis=0) - vectors.mean(axis=0)) for o in left}
        assert gaps[row] <= min(gaps.values()) + 1e-9
        taken.append(row)
    assert len(taken) == n


@given(
    seed=SEEDS,
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    keep=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_representation_keeps_the_sure_rows_leaves_out_the_cut_and_herds_the_rest(
    seed: int, sizes: list[int], keep: list[float]
):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors, ids = rng.normal(size=(len(codes), 2)), 100 + np.arange(len(codes))
    cost = rng.choice([0.0, np.inf, -np.inf], len(codes), p=[0.6, 0.2, 0.2])
    counts = np.array([size - round(share * size) for size, share in zip(sizes, keep, strict=False)])
    part = buckets.represented(ids, vectors, cost, codes, counts)
    dropped = np.isin(ids, part.dropped)
    assert part.exact
    assert np.array_equal(part.pool, ids[cost == 0])
    residual = np.zeros((len(sizes), 2))
    assert np.array_equal(np.bincount(codes[dropped], minlength=len(sizes)), counts)
    for code, gone in enumerate(counts):
        own = np.flatnonzero(codes == code)
        wanted = len(own) - gone
        sure, free = own[cost[own] == np.inf], own[cost[own] == 0]
        kept = own[~dropped[own]]
        if len(sure) >= wanted:  # of those that may be chosen all are dropped
            assert np.array_equal(kept, sure[:wanted])
            continue
        others = free if len(sure) + len(free) >= wanted else np.setdiff1d(own, sure)
        chosen = others[list(herd(vectors[others], int(wanted - len(sure))))]
        assert np.array_equal(kept, np.sort(np.concatenate([sure, chosen])))
        for row in np.setdiff1d(others, chosen):
            residual[code] += vectors[row] - vectors[others].mean(axis=0)
    assert part.residual is not None
    np.testing.assert_allclose(part.residual, residual, atol=1e-9)


@given(weights=st.lists(st.integers(0, 50), min_size=1, max_size=8), share=st.floats(0, 1))
def test_shares_are_rounded_to_neighbours_that_sum_up(weights: list[int], share: float):
    counts = np.array(weights)
    total = round(share * counts.sum())
    shares = counts * (total / max(counts.sum(), 1))
    found = largest_remainder(shares, total)
    assert found.sum() == total
    assert (np.abs(found - shares) < 1 + 1e-6).all()
    up, down = found > shares + 1e-6, found < shares - 1e-6
    if up.any() and down.any():  # whoever is rounded up has the larger remainder
        remainders = shares - np.floor(shares + 1e-9)
        assert remainders[up].min() >= remainders[down].max() - 1e-9


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), share=st.floats(0, 1), seed=SEEDS)
def test_every_class_keeps_its_share_and_a_row(sizes: list[int], share: float, seed: int):
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    classes = Classes("label", tuple(map(str, range(len(sizes)))), codes)
    n = len(codes)
    kept = len(sizes) + round(share * (n - len(sizes)))
    found = classes.kept_counts(kept)
    assert found.sum() == kept
    assert (found >= 1).all()
    assert (found <= classes.counts()).all()
    wanted = np.array(sizes) * (kept / n)
    small = wanted < 1
    assert (np.abs(found - wanted)[~small] < 1 + small.sum()).all()
    if not small.any():
        assert (np.abs(found - wanted) < 1).all()
    none = [name for name, own in zip(classes.names, largest_remainder(wanted, kept), strict=True) if own == 0]
    assert classes.raised(kept) == none
    assert classes.most_dropped() == n - len(sizes)
    rows = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.5)
    assume(len(rows))
    part = classes.take(rows)
    assert [part.names[code] for code in part.codes] == [classes.names[code] for code in codes[rows]]
    assert set(part.names) == {classes.names[code] for code in codes[rows]}


def test_too_few_rows_for_the_classes_are_refused_at_the_border():
    classes = Classes("label", ("a", "b", "c"), np.array([0, 0, 1, 2, 2]))
    assert classes.kept_counts(3).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="keep at least 3 rows"):
        classes.kept_counts(2)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    parts=st.integers(1, 5),
    share=st.floats(0, 1),
    seed=SEEDS,
)
def test_buckets_share_rows_and_counts_out_evenly(sizes: list[int], parts: int, share: float, seed: int):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    found = buckets.partition(codes, parts, rng)
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(len(codes)))
    assert all(np.array_equal(ids, np.sort(ids)) for ids in found)
    table = np.stack([np.bincount(codes[ids], minlength=len(sizes)) for ids in found])
    assert (np.ptp(table, axis=0) <= 1).all()
    counts = np.array([round(share * size) for size in sizes])
    dropped = buckets._bucket_counts(list(table), counts)
    assert np.array_equal(dropped.sum(axis=0), counts)
    assert (dropped <= table).all()
    assert (np.abs(dropped - table * counts / np.maximum(table.sum(axis=0), 1)) < 1).all()


@given(n=st.integers(1, 12), groups=st.integers(1, 3), share=st.floats(0, 1), seed=SEEDS)
def test_columns_take_their_largest_rows_in_turn(n: int, groups: int, share: float, seed: int):
    values, count = np.random.default_rng(seed).normal(size=(n, groups)), round(share * n)
    left, truth = set(range(n)), []
    for turn in range(count):
        best = max(left, key=lambda row: values[row, turn % groups])
        truth.append(best)
        left.remove(best)
    assert take_turns(values, count, seed).tolist() == truth


@given(n=st.integers(2, 9), share=st.floats(0, 1), seed=SEEDS)
def test_annealing_returns_a_subset_and_its_own_length(n: int, share: float, seed: int):
    vectors, removed = np.random.default_rng(seed).normal(size=(n, 2)), round(share * n)
    mask, length = anneal(vectors, removed, seed)
    assert mask.sum() == removed
    assert length == pytest.approx(np.linalg.norm(vectors[mask].sum(axis=0)), abs=1e-9)


def test_annealing_finds_sums_among_the_shortest_of_all():
    places = []
    for seed in range(10):
        vectors = np.random.default_rng(seed).normal(size=(10, 3)) + 1
        found = anneal(vectors, 5, seed)[1]
        sums = [np.linalg.norm(vectors[list(rows)].sum(axis=0)) for rows in itertools.combinations(range(10), 5)]
        places.append(sum(length < found - 1e-9 for length in sums))
    assert np.mean(places) < 5  # of 252


@settings(max_examples=30)
@given(n=st.integers(6, 40), d=st.integers(1, 4), signal=st.floats(0, 5), seed=SEEDS)
def test_pooling_is_ridge_regression_chosen_by_generalized_cross_validation(n: int, d: int, signal: float, seed: int):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d)) * [1.0, 10.0, 0.1, 3.0][:d] + 5).astype(np.float32)
    y = (signal * (x[:, 0] - 5) + rng.normal(size=n) + 2).astype(np.float32)
    target, z = y - y.mean(dtype=np.float64), x.astype(np.float64)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    scores = []
    for penalty in PENALTIES:
        hat = z @ np.linalg.solve(z.T @ z + n * penalty * np.eye(d), z.T)
        left = target - hat @ target
        scores.append((left @ left / n) / (1 - (np.trace(hat) + 1) / n) ** 2)  # 1 more for the mean
    best = int(np.argmin(scores))
    fitted = z @ np.linalg.solve(z.T @ z + n * PENALTIES[best] * np.eye(d), z.T @ target)
    share = np.clip(1 - scores[best] / target.var(), 0, 1)
    found = pooled(y, vectors_of(x))
    assert found.share == pytest.approx(share, abs=1e-4)
    np.testing.assert_allclose(
        found.values, fitted + (1 - share) * (target - fitted), atol=2e-3 * np.abs(target).max()
    )


def test_pooling_does_without_features_that_do_not_vary_and_values_that_do_not():
    x = np.column_stack([np.full(20, 3.0), np.arange(20.0)])
    y = np.arange(20.0)
    both, one = pooled(y, vectors_of(x)), pooled(y, vectors_of(x[:, 1:]))
    np.testing.assert_allclose(both.values, one.values, atol=1e-3)
    flat = pooled(np.ones(20), vectors_of(x))
    assert flat.share == 0
    assert not flat.values.any()
