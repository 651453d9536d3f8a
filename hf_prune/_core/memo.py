"""
Digests of columns that this process has read, for as long as their memory is provably the same.

Only columns of memory-mapped Arrow files are remembered. What is built in memory may share its buffers with a NumPy
array or a pandas frame that is written to afterwards, and a fingerprint is only what a file says of itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

import pyarrow as pa
from datasets import Dataset

from hf_prune._core import compat


@dataclass(frozen=True)
class _Entry:
    digest: str
    owner: ref[pa.Table]
    """Keeps the addresses from being used again; a digest counts while it lives."""
    files: tuple[tuple[str, ...], ...]
    """State of the mapped files before they were read."""


_entries: dict[Any, _Entry] = {}


class Memo:
    """
    What is known of the columns of one dataset.

    A column is known by the addresses of its buffers, their offsets and lengths, and the content of the indices
    mapping: a dataset with other rows, in another order or loaded again has another key. A mapped file that was
    written to since, as its size or times say, is read again.

    Args:
        dataset (`datasets.Dataset`):
            The dataset. The files' state is noted here, before the rows are read.
        rows (`str`):
            Digest of the indices mapping; `""` if there is none.
    """

    def __init__(self, dataset: Dataset, rows: str):
        blocks = compat.mapped_blocks(dataset)
        self._table = dataset.data.table
        self._rows = rows
        self._files = tuple(sorted({_state(path) for path, _ in blocks}))
        self._mapped = {
            buffer.address
            for _, table in blocks
            for column in table.columns
            for chunk in column.chunks
            for buffer in chunk.buffers()
            if buffer is not None
        }

    def known(self, names: list[str]) -> dict[str, str]:
        """Digests of those of the columns that were read before and are the same."""
        found = {name: _entries.get(self._key(name)) for name in names}
        return {name: entry.digest for name, entry in found.items() if entry is not None and _holds(entry)}

    def keep(self, digests: Mapping[str, str]) -> None:
        """Remembers digests that were made since this object was."""
        for key in [key for key, entry in list(_entries.items()) if entry.owner() is None]:
            _entries.pop(key, None)
        if any(len(state) == 1 for state in self._files):
            return
        for name, digest in digests.items():
            key = self._key(name)
            if key is not None:
                _entries[key] = _Entry(digest, ref(self._table), self._files)

    def _key(self, name: str) -> Any:
        """What a column's content follows from; `None` where it cannot be told, or is not in a mapped file."""
        column = self._table.column(name)
        if not self._mapped or not all(
            buffer is None or buffer.size == 0 or buffer.address in self._mapped
            for chunk in column.chunks
            for buffer in chunk.buffers()
        ):
            return None
        chunks = tuple(_memory(chunk) for chunk in column.chunks)
        return None if None in chunks else (self._rows, column.type, chunks)


def _holds(entry: _Entry) -> bool:
    return entry.owner() is not None and all(_state(state[0]) == state for state in entry.files)


def _state(path: str) -> tuple[str, ...]:
    """The path and what changes when the file is written to; the path alone if the file is gone."""
    try:
        now = os.stat(path)
    except OSError:
        return (path,)
    return (path, *map(str, (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)))


def _memory(array: pa.Array) -> Any:
    """
    Where an array's values lie, its children's too, whose offsets `buffers` does not tell.

    Returns:
        `tuple`: Equal for arrays of equal values; `None` for kinds that are not looked into.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_struct(kind):
        children = [array.field(position) for position in range(kind.num_fields)]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        children = [array.values]
    elif kind.num_fields or pa.types.is_dictionary(kind):
        return None
    else:
        children = []
    below = tuple(_memory(child) for child in children)
    if None in below:
        return None
    buffers = tuple(None if buffer is None else (buffer.address, buffer.size) for buffer in array.buffers())
    return (kind, array.offset, len(array), buffers, below)
