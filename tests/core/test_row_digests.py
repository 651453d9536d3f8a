"""Two values have the same digest exactly if they are the same value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from hf_prune._core.row_digests import array_digests, row_digests
from tests.core.test_digest import COLUMNS

numbers = st.integers(-(2**63), 2**63 - 1) | st.none()
texts = st.text(max_size=3) | st.none()
KINDS = [
    numbers,
    st.floats(width=64) | st.none(),
    texts,
    st.binary(max_size=3) | st.none(),
    st.booleans() | st.none(),
    st.lists(numbers, max_size=3) | st.none(),
    st.lists(st.lists(texts, max_size=2) | st.none(), max_size=2) | st.none(),
    st.fixed_dictionaries({"b": texts, "a": st.lists(numbers, max_size=2)}) | st.none(),
    st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), max_size=2),
]


def form(value: Any) -> Any:
    """What tells values apart: NaN is NaN, and 0.0 is not -0.0."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    if isinstance(value, list):
        return [form(item) for item in value]
    if isinstance(value, dict):
        return {name: form(item) for name, item in value.items()}
    return value


@given(st.one_of([st.lists(kind, min_size=1, max_size=12) for kind in KINDS]))
def test_digests_are_equal_exactly_where_values_are(values: list[Any]):
    digests = [bytes(row) for row in array_digests(pa.array(values))]
    known = [form(value) for value in pa.array(values).to_pylist()]
    for i in range(len(values)):
        for j in range(i):
            assert (digests[i] == digests[j]) == (known[i] == known[j])


@pytest.mark.parametrize("column", list(COLUMNS))
def test_a_row_has_its_digest_wherever_it_lies(column: str):
    rows = Dataset.from_dict({column: COLUMNS[column]})
    whole = row_digests(rows, [column])[column]
    order = [3, 0, 5, 1, 4, 2]
    pieces = concatenate_datasets([rows.select([4]), rows.select([1, 2]), rows.select([5])])
    assert np.array_equal(row_digests(rows.select(order), [column])[column], whole[order])
    assert np.array_equal(row_digests(pieces, [column])[column], whole[[4, 1, 2, 5]])


@pytest.mark.parametrize("width", ["int8", "uint16", "int32", "uint64"])
def test_widths_and_large_kinds_do_not_matter(width: str):
    values = {"x": [3, None, 100], "l": [[1], [], None]}
    narrow = Dataset.from_dict(values, features=Features({"x": Value(width), "l": List(Value(width))}))
    wide = row_digests(Dataset.from_dict(values), ["x", "l"])
    assert all(np.array_equal(row_digests(narrow, ["x", "l"])[name], wide[name]) for name in wide)


def test_kinds_are_told_apart():
    arrays = [pa.array([1]), pa.array([1.0]), pa.array([True]), pa.array(["1"]), pa.array([b"1"]), pa.array([None])]
    big = [pa.array([2**63], pa.uint64()), pa.array([-(2**63)])]
    lists = [pa.array([[]], pa.list_(pa.int64())), pa.array([[None]], pa.list_(pa.int64()))]
    digests = [bytes(array_digests(array)[0]) for array in arrays + big + lists]
    assert len(set(digests)) == len(digests)
