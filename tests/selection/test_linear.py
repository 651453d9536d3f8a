"""The linear program: exact balance at a vertex, exact counts after rounding, and swaps that only help."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.selection.linear import solve
from hf_prune.selection.rounding import refine, round_to_counts, swap_pool


def _program(n: int = 300, d: int = 6, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, d)) * 10.0 ** np.arange(-d, 0)  # directions of very different scale
    vectors -= vectors.mean(axis=0)
    return vectors, rng.random(n), np.arange(n) % classes


def test_the_vertex_balances_every_direction_and_class():
    vectors, cost, codes = _program()
    totals = np.array([40.0, 50.0, 60.5])
    solution = solve(vectors, cost, codes, totals, np.zeros(6))
    assert solution.exact
    weights = solution.weights
    assert weights.min() >= 0
    assert weights.max() <= 1
    np.testing.assert_allclose(np.bincount(codes, weights), totals, atol=1e-6)
    assert (np.abs(weights @ vectors) <= 1e-5 * vectors.std(axis=0)).all()


def test_a_vertex_has_no_more_fractional_entries_than_constraints():
    vectors, cost, codes = _program()
    weights = solve(vectors, cost, codes, np.full(3, 50.0), np.zeros(6)).weights
    assert 0 < ((weights > 1e-9) & (weights < 1 - 1e-9)).sum() <= 6 + 3


def test_reduced_costs_say_which_rows_are_settled():
    vectors, cost, codes = _program()
    solution = solve(vectors, cost, codes, np.full(3, 50.0), np.zeros(6))
    weights, reduced = solution.weights, solution.reduced_cost
    assert (reduced[weights > 1 - 1e-9] < 1e-9).all()
    assert (reduced[weights < 1e-9] > -1e-9).all()
    settled = (weights < 1e-9) | (weights > 1 - 1e-9)
    assert (np.abs(reduced) > 1e-9)[settled].mean() > 0.95
    assert np.abs(reduced[~settled]).max() < 1e-9


def test_the_vertex_is_cheaper_than_random_balanced_weights():
    vectors, cost, codes = _program()
    weights = solve(vectors, cost, codes, np.full(3, 50.0), np.zeros(6)).weights
    assert cost @ weights < 0.7 * cost.mean() * 150


def test_the_target_is_met():
    vectors, cost, codes = _program()
    target = 3 * vectors.std(axis=0)
    np.testing.assert_allclose(
        solve(vectors, cost, codes, np.full(3, 50.0), target).weights @ vectors / target, 1.0, atol=1e-5
    )


def test_an_unreachable_target_gives_the_nearest_point_and_says_so():
    vectors, cost, codes = _program(d=2)
    reachable = np.sort(vectors[:, 0])[-150:].sum()
    target = np.array([2 * reachable, 0.0])
    solution = solve(vectors, cost, codes, np.full(3, 50.0), target)
    assert not solution.exact
    assert (solution.weights @ vectors)[0] > 0.8 * reachable
    np.testing.assert_allclose(np.bincount(codes, solution.weights), 50.0, atol=1e-6)


def test_directions_that_are_all_zero_make_no_constraint():
    vectors, cost, codes = _program()
    vectors[:, 2:] = 0.0
    assert solve(vectors, cost, codes, np.full(3, 50.0), np.zeros(6)).exact
    assert solve(np.zeros((300, 6)), cost, codes, np.full(3, 50.0), np.zeros(6)).exact


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**31))
def test_rounding_hits_the_count_exactly(n: int, classes: int, seed: int):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, classes, n)
    counts = np.array([rng.integers(0, size + 1) for size in np.bincount(codes, minlength=classes)])
    weights = rng.choice([0.0, 0.3, 1.0], n)
    dropped = round_to_counts(weights, rng.normal(size=n), codes, counts)
    np.testing.assert_array_equal(np.bincount(codes[dropped], minlength=classes), counts)
    for code in np.unique(codes):  # never a light row while a heavier one of the class stays
        inside, outside = weights[dropped & (codes == code)], weights[~dropped & (codes == code)]
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**31))
def test_swaps_keep_the_counts_and_never_lengthen_the_residual(n: int, classes: int, seed: int):
    rng = np.random.default_rng(seed)
    codes, vectors, dropped = rng.integers(0, classes, n), rng.normal(size=(n, 3)), rng.random(n) < 0.5
    before = vectors[dropped].sum(axis=0) + 1.0  # 1.0: what rows outside the pool leave
    after, residual = refine(vectors, dropped, codes, before)
    np.testing.assert_array_equal(np.bincount(codes[after], minlength=4), np.bincount(codes[dropped], minlength=4))
    np.testing.assert_allclose(residual, vectors[after].sum(axis=0) + 1.0, atol=1e-9)
    assert np.linalg.norm(residual) <= np.linalg.norm(before)


def test_swaps_end_where_no_single_swap_helps():
    rng = np.random.default_rng(0)
    vectors, dropped = rng.normal(size=(24, 3)), np.arange(24) < 12
    after, residual = refine(vectors, dropped, np.zeros(24, dtype=int), vectors[dropped].sum(axis=0))
    for i in np.flatnonzero(after):
        for j in np.flatnonzero(~after):
            assert np.linalg.norm(residual - vectors[i] + vectors[j]) >= np.linalg.norm(residual) - 1e-9


def test_the_swap_pool_has_rows_of_every_class_inside_and_outside():
    codes = np.arange(900) % 3
    dropped = np.arange(900) < 450
    reduced_cost = np.random.default_rng(0).normal(size=900)
    pool = swap_pool(reduced_cost, dropped, codes)
    for code in range(3):
        for side in (True, False):
            group = np.flatnonzero((codes == code) & (dropped == side))
            inside = np.intersect1d(group, pool)
            assert len(inside) >= 4
            assert np.abs(reduced_cost[inside]).max() <= np.abs(np.delete(reduced_cost, pool)).max()
            assert np.abs(reduced_cost[np.setdiff1d(group, pool)]).min() >= np.abs(reduced_cost[inside]).max()


@pytest.mark.parametrize("seed", range(3))
def test_the_program_gives_the_same_vertex_again(seed: int):
    program = _program(seed=seed)
    first, second = (solve(*program, np.full(3, 50.0), np.zeros(6)).weights for _ in range(2))
    np.testing.assert_array_equal(first, second)
