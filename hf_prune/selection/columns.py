"""Columns of a dataset as arrays, read without a copy where that can be, and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_prune._core import compat


def check_dataset(dataset: Any) -> None:
    """Raises unless `dataset` is a `Dataset` with rows."""
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits = ", ".join(repr(str(name)) for name in dataset)
        raise TypeError(
            f"Got a {type(dataset).__name__}: name one of its splits ({splits}) with split=, or pass one, as in "
            "dataset['train']."
        )
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
    indices = compat.row_indices(dataset)
    if indices is None:
        return values
    # the Arrow format of `datasets` gathers row by row, 20 times slower
    return values.take(indices.combine_chunks())


def find_column(dataset: Dataset, column: str, fix: str | None = None) -> None:
    """Raises unless the dataset has the column; `fix` says how to get it."""
    if column not in dataset.column_names:
        fix = fix or "score it first with `add_influence`, or name the column with `column=`"
        raise ValueError(f"The dataset has no column {column!r}: {fix}.")


def read_scalars(dataset: Dataset, column: str, fix: str | None = None) -> np.ndarray:
    """
    A column of one number a row, float32 of shape `(n,)`.

    Args:
        dataset (`Dataset`): The dataset.
        column (`str`): The column.
        fix (`str`, *optional*): How to get the column where it is missing; by default `add_influence`.

    Raises:
        `TypeError`: If it does not hold numbers.
        `ValueError`: If it is not there, or holds NaN or infinite values.
    """
    find_column(dataset, column, fix)
    values = read_column(dataset, column)
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise TypeError(f"Column {column!r} holds {values.type}, not numbers: name a column of one number a row.")
    # missing values become NaN, and are named as such
    result = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    check_finite(np.isfinite(result), column)
    return result


def read_lengths(dataset: Dataset, column: str, fix: str) -> np.ndarray:
    """
    Lengths of the lists in a column, `(n,)`.

    Raises:
        `TypeError`: If it does not hold lists.
        `ValueError`: If it is not there, or has no list in some row.
    """
    find_column(dataset, column, fix)
    values = read_column(dataset, column)
    if values.null_count:
        raise ValueError(f"Column {column!r} has no value in {values.null_count} rows: remove them with `filter`.")
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        raise TypeError(f"Column {column!r} holds {values.type}, not lists of tokens: {fix}.")
    return pc.list_value_length(values).to_numpy()


def check_finite(finite: np.ndarray, column: str) -> None:
    """Raises unless all of `finite`, bool of shape `(n,)`, hold; names the first row that does not."""
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise ValueError(
            f"Column {column!r} has NaN or infinite values in {len(bad)} of {len(finite)} rows, the first is row "
            f"{bad[0]}: score the dataset again, or remove these rows with `filter`."
        )
