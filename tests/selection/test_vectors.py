"""Vectors are read from Arrow in place, whatever its chunks and indices are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, List, Value, concatenate_datasets, load_from_disk

from hf_prune.selection.vectors import BLOCK, mean_of, read_vectors
from tests.selection.scored import scored


def _chunked(tmp_path: Path) -> tuple[Dataset, np.ndarray]:
    dataset = scored(500)
    parts = [dataset.select(range(start, stop)) for start, stop in ((0, 3), (3, 250), (250, 500))]
    concatenate_datasets([part.flatten_indices() for part in parts]).save_to_disk(tmp_path / "rows")
    return load_from_disk(str(tmp_path / "rows")), np.array(dataset["influence"], dtype="float32")


def test_any_rows_are_read_from_any_chunks(tmp_path: Path):
    dataset, expected = _chunked(tmp_path)
    order = np.random.default_rng(0).permutation(500)
    for rows, truth in ((dataset, expected), (dataset.select(order.tolist()), expected[order])):
        vectors = read_vectors(rows, "influence")
        wanted = np.array([499, 0, 3, 2, 250, 3, 249])
        np.testing.assert_array_equal(vectors.take(wanted), truth[wanted])
        np.testing.assert_array_equal(vectors.select(wanted).take(np.array([1, 5])), truth[[0, 3]])
        np.testing.assert_array_equal(np.concatenate([block for _, block in vectors.blocks()]), truth)
        assert vectors.take(np.array([], dtype=np.int64)).shape == (0, 16)


def test_blocks_cover_all_rows_once():
    n = 2 * BLOCK + 5
    dataset = scored(n, k=2)
    slices = [rows for rows, _ in read_vectors(dataset, "influence").blocks()]
    assert [(rows.start, rows.stop) for rows in slices] == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, n)]


def test_nothing_is_copied_until_rows_are_taken(tmp_path: Path):
    dataset, _ = _chunked(tmp_path)
    for chunk, view in zip(
        dataset.data.column("influence").chunks, read_vectors(dataset, "influence").chunks, strict=True
    ):
        address = chunk.flatten().buffers()[1].address
        assert address <= view.ctypes.data < address + chunk.flatten().buffers()[1].size


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_lists_of_any_kind_are_read_as_float32(kind):
    values = [[0.5, 1.0], [2.0, 4.0], [8.0, 16.0]]
    dataset = Dataset.from_dict({"x": values}).cast_column("x", List(Value(kind)))
    taken = read_vectors(dataset, "x").take(np.array([2, 0]))
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, [[8.0, 16.0], [0.5, 1.0]])


def test_odd_rows_that_are_not_selected_do_no_harm():
    table = pa.table({"x": pa.array([[1.0, 2.0], None, [3.0], [5.0, 6.0]], pa.list_(pa.float32()))})
    dataset = Dataset(table).select([3, 0])
    np.testing.assert_array_equal(mean_of(read_vectors(dataset, "x"), "x"), [3.0, 4.0])
    with pytest.raises(ValueError, match="has no value in 1 rows"):
        read_vectors(Dataset(table), "x")
    with pytest.raises(ValueError, match="unequal length"):
        read_vectors(Dataset(table).select([0, 2]), "x")
