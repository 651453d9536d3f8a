"""Columns of a dataset as arrays, read without a copy where that can be, and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

CHUNK = 16_384
"""Rows that are worked on at a time, so that no second copy of the influence matrix is ever held."""


def check_dataset(dataset: Any) -> None:
    """Raises unless `dataset` is a `Dataset` with rows."""
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits = ", ".join(repr(str(name)) for name in dataset)
        raise TypeError(f"Got a {type(dataset).__name__}: pass one of its splits ({splits}), as in dataset['train'].")
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "Got an IterableDataset, whose rows have no ids: make a Dataset with `Dataset.from_generator`."
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(f"Got a {type(dataset).__name__}: pass a `datasets.Dataset` with influence columns.")
    if len(dataset) == 0:
        raise ValueError("The dataset has no rows: pass one that has, scored with `add_influence`.")


def read_column(dataset: Dataset, column: str) -> pa.Array:
    """A column as one Arrow array: a view where the dataset holds it in one chunk and has no indices mapping."""
    chunks = dataset.data.column(column)
    values = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    if dataset._indices is None:
        return values
    # the Arrow format of `datasets` gathers row by row, 20 times slower
    return values.take(dataset._indices.column(0).combine_chunks())


def _scored(dataset: Dataset, column: str) -> pa.Array:
    if column not in dataset.column_names:
        raise ValueError(
            f"The dataset has no column {column!r}: score it first with `add_influence`, or name the column with "
            "`column=`."
        )
    return read_column(dataset, column)


def read_matrix(dataset: Dataset, column: str) -> np.ndarray:
    """
    The influence column as float32 of shape `(n, k)`, without a copy where Arrow holds it so.

    Raises:
        `TypeError`: If it does not hold lists of floats.
        `ValueError`: If it is not there, or its lists are missing, empty, unequal, or hold NaN or infinite values.
    """
    values = _scored(dataset, column)
    kind = values.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise TypeError(f"Column {column!r} is of type {kind}, not a list of floats: name an influence column.")
    if not pa.types.is_floating(kind.value_type):
        raise TypeError(f"Column {column!r} holds {kind.value_type}, not floats: name an influence column.")
    if values.null_count:
        raise ValueError(
            f"Column {column!r} has no value in {values.null_count} rows: score the dataset again with "
            "`add_influence`."
        )
    lengths = pc.unique(pc.list_value_length(values)).to_pylist()
    if len(lengths) > 1 or lengths[0] == 0:
        raise ValueError(
            f"Column {column!r} holds empty lists or lists of unequal length: score the dataset with `add_influence`."
        )
    flat = values.flatten().to_numpy(zero_copy_only=False)
    matrix = flat.astype(np.float32, copy=False).reshape(len(values), -1)
    finite = np.ones(len(matrix), dtype=bool)
    for start in range(0, len(matrix), CHUNK):
        finite[start : start + CHUNK] = np.isfinite(matrix[start : start + CHUNK]).all(axis=1)
    _check_finite(finite, column)
    return matrix


def read_scalars(dataset: Dataset, column: str) -> np.ndarray:
    """A column of one float a row, float32 of shape `(n,)`; raises as `read_matrix` does."""
    values = _scored(dataset, column)
    if not pa.types.is_floating(values.type):
        raise TypeError(f"Column {column!r} holds {values.type}, not floats: score the dataset with `add_influence`.")
    # missing values become NaN, and are named as such
    result = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    _check_finite(np.isfinite(result), column)
    return result


def _check_finite(finite: np.ndarray, column: str) -> None:
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ValueError(
            f"Column {column!r} has NaN or infinite values in {len(bad)} of {len(finite)} rows, the first is row "
            f"{bad[0]}: score the dataset again with `add_influence`, or remove these rows with `filter`."
        )
