"""A column of vectors, read from Arrow in place: as many rows at a time as are worked on, never the whole column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_prune._core import compat
from hf_prune.selection.columns import check_finite, find_column, read_column

BLOCK = 16_384
"""Rows that are worked on at a time."""


@dataclass(frozen=True)
class Vectors:
    """
    Equally long vectors, one a row.

    Args:
        chunks (`tuple[np.ndarray, ...]`): Views of Arrow's memory, floats of shape `(rows of the chunk, k)`.
        starts (`np.ndarray`): First row of each chunk and, last, the number of all rows, int64.
        indices (`np.ndarray`, *optional*): Which of these rows there are, in which order, int64 of shape `(n,)`.
    """

    chunks: tuple[np.ndarray, ...]
    starts: np.ndarray
    indices: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.indices is None else len(self.indices)

    @property
    def k(self) -> int:
        return self.chunks[0].shape[1]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows, float32 of shape `(rows, k)`."""
        places = rows if self.indices is None else self.indices[rows]
        order = np.argsort(places, kind="stable")  # memory is read in its own order
        places = places[order]
        bounds = np.searchsorted(places, self.starts)
        result = np.empty((len(places), self.k), dtype=np.float32)
        for chunk, start, low, high in zip(self.chunks, self.starts, bounds, bounds[1:], strict=False):
            if low < high:
                result[order[low:high]] = chunk[places[low:high] - start]
        return result

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All vectors, block by block: where a block is, and its vectors `(rows, k)`."""
        for start in range(0, len(self), BLOCK):
            stop = min(start + BLOCK, len(self))
            yield slice(start, stop), self.take(np.arange(start, stop))

    def select(self, rows: np.ndarray) -> Vectors:
        """Some of the rows; nothing is copied but their numbers."""
        return replace(self, indices=rows if self.indices is None else self.indices[rows])


def read_vectors(dataset: Dataset, column: str) -> Vectors:
    """
    Reads a column of vectors where Arrow holds it.

    Raises:
        `TypeError`: If it does not hold lists of floats.
        `ValueError`: If it is not there, or its lists are missing, empty, or of unequal length.
    """
    find_column(dataset, column)
    stored = dataset.data.column(column)
    kind = stored.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise TypeError(f"Column {column!r} is of type {kind}, not a list of floats: name an influence column.")
    if not pa.types.is_floating(kind.value_type):
        raise TypeError(f"Column {column!r} holds {kind.value_type}, not floats: name an influence column.")
    mapping = compat.row_indices(dataset)
    indices = None if mapping is None else mapping.to_numpy()
    chunks = [chunk for chunk in stored.chunks if len(chunk)]
    if indices is not None and not _is_regular(chunks):
        chunks, indices = [read_column(dataset, column)], None  # the odd rows may not be among the dataset's own
    missing = sum(chunk.null_count for chunk in chunks)
    if missing:
        raise ValueError(
            f"Column {column!r} has no value in {missing} rows: score the dataset again with `add_influence`."
        )
    if not _is_regular(chunks):
        raise ValueError(
            f"Column {column!r} holds empty lists or lists of unequal length: score the dataset with `add_influence`."
        )
    views = tuple(c.flatten().to_numpy(zero_copy_only=False).reshape(len(c), -1) for c in chunks)
    return Vectors(views, np.cumsum([0, *map(len, chunks)]), None if indices is None else indices.astype(np.int64))


def _is_regular(chunks: list[pa.Array]) -> bool:
    """Whether every row has a list, none is empty, and all are equally long."""
    lengths = {length for chunk in chunks for length in pc.unique(pc.list_value_length(chunk)).to_pylist()}
    return len(lengths) == 1 and lengths.isdisjoint({0, None})


def mean_of(vectors: Vectors, column: str) -> np.ndarray:
    """
    Mean vector, float64 of shape `(k,)`.

    Raises:
        `ValueError`: If there are NaN or infinite values.
    """
    total = np.zeros(vectors.k)
    finite = np.ones(len(vectors), dtype=bool)
    for rows, block in vectors.blocks():
        finite[rows] = np.isfinite(block).all(axis=1)
        total += block.sum(axis=0, dtype=np.float64)
    check_finite(finite, column)
    return total / len(vectors)
