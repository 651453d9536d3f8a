"""The count sketch as a matrix: one sign a column, and inner products that it keeps in the mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.influence.sketch.count_sketch import FEWEST, CountSketch, matrix_shape
from hf_prune.influence.sketch.window_pass import NARROWER, WIDE, narrow

CPU = torch.device("cpu")
SHAPES = st.lists(
    st.one_of(
        st.just(()),
        st.tuples(st.integers(1, 300)),
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=4,
)


def matrix_of(sketch: CountSketch) -> torch.Tensor:
    """The map `(d, p)` entry by entry, from its signs and buckets alone."""
    columns = []
    for place, (rows, inner) in enumerate(sketch.shapes):
        out, across = sketch.signs[place]
        for entry in range(rows * inner):
            column = torch.zeros(sketch.width)
            bucket = sketch.parts[place].start + entry % sketch.sizes[place]
            column[bucket] = out[entry // inner] * across[entry % inner]
            columns.append(column)
    return torch.stack(columns, 1)


@settings(max_examples=40)
@given(shapes=SHAPES, width=st.integers(1, 400), seed=st.integers(0, 1000))
def test_a_sketch_is_a_matrix_with_one_sign_in_each_column(shapes, width: int, seed: int):
    sketch = CountSketch(shapes, width, seed=seed, device=CPU)
    sizes = [math.prod(shape) for shape in shapes]
    S = matrix_of(sketch)
    assert torch.equal(S.abs().sum(0), torch.ones(sum(sizes)))
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 3, sum(sizes), generator=generator)
    scales = [None if place % 2 else torch.rand(size, generator=generator) for place, size in enumerate(sizes)]
    factors = torch.cat([torch.ones(n) if s is None else s for s, n in zip(scales, sizes, strict=True)])
    found = sketch.sketch(2 * x - 3 * y, scales)
    assert torch.allclose(found, 2 * sketch.sketch(x, scales) - 3 * sketch.sketch(y, scales), atol=1e-4)
    assert torch.allclose(sketch.sketch(x, scales), (x * factors) @ S.T, atol=1e-4)
    each = torch.arange(1.0, len(shapes) + 1)
    assert torch.equal(sketch.spread(each), torch.cat([each[i].repeat(m) for i, m in enumerate(sketch.sizes)]))
    assert sketch.folds == (2 * sketch.width < sum(sizes))


@given(shapes=SHAPES, width=st.integers(1, 400), shares=st.lists(st.floats(0.1, 1), min_size=4, max_size=4))
def test_buckets_go_by_shares_and_spread_columns(shapes, width: int, shares: list[float]):
    shares = shares[: len(shapes)]
    sketch = CountSketch(shapes, width, seed=0, device=CPU, shares=shares)
    for shape, size, share in zip(map(matrix_shape, shapes), sketch.sizes, shares, strict=True):
        whole = math.prod(shape)
        wanted = max(FEWEST, math.ceil(width * share / sum(shares)))
        assert size == whole or (size % 2 == 1 and wanted <= size < whole and math.gcd(size, shape[1]) == 1)
        assert size >= min(wanted, whole)
        smaller = [n for n in range(wanted | 1, size, 2) if n < whole]
        assert all(math.gcd(n, shape[1]) > 1 for n in smaller), "a smaller number would have done"


@pytest.mark.parametrize(("shape", "rows", "columns"), [((), 1, 1), ((5,), 5, 1), ((4, 3), 4, 3), ((4, 3, 2), 4, 6)])
def test_parameters_are_matrices_of_one_row_a_first_index(shape, rows: int, columns: int):
    assert matrix_shape(shape) == (rows, columns)


def test_inner_products_are_kept_in_the_mean_over_all_signs():
    # all signs of a vector of 128 entries are too many; those of two entries that share a bucket are four
    x, y = torch.zeros(2, 128)
    x[3], x[3 + 63], y[3], y[3 + 63] = 1.0, 2.0, 5.0, 7.0
    found = set()
    for seed in range(40):
        sketch = CountSketch([(128,)], 63, seed=seed, device=CPU)
        a, b = sketch.sketch(torch.stack([x, y]), [None])
        found.add(float(a @ b))
    assert sketch.sizes == [63]
    truth = float(x @ y)
    assert found == {truth + (1 * 7 + 2 * 5), truth - (1 * 7 + 2 * 5)}


def test_both_signs_are_as_frequent_as_a_coin_gives():
    signs = CountSketch([(10_000,)], 1 << 20, seed=0, device=CPU).signs[0][0]
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.sum())) < 4 * 10_000**0.5


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-6), (torch.bfloat16, 0.05)])
def test_entries_of_any_precision_are_folded_alike(dtype: torch.dtype, rounding: float):
    sketch = CountSketch([(500,)], 100, seed=0, device=CPU)
    entries = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    found = sketch.fold(0, entries.to(dtype)).float()
    assert torch.allclose(found, sketch.fold(0, entries), atol=rounding, rtol=rounding)


def test_a_narrower_sketch_sums_buckets_that_lie_apart():
    assert torch.equal(narrow(torch.ones(2, WIDE - 1)), torch.ones(2, WIDE - 1))
    whole = torch.randn(3, WIDE + 2, generator=torch.Generator().manual_seed(0))
    found = narrow(whole)
    size = -(-whole.shape[1] // NARROWER)
    truth = torch.zeros(3, size)
    for bucket in range(whole.shape[1]):
        truth[:, bucket % size] += whole[:, bucket]
    assert torch.allclose(found, truth, atol=1e-6)
