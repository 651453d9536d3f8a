"""Digests of a dataset's content: the same rows give the same digest however Arrow happens to hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_prune._core import compat
from hf_prune._core.memo import Memo

_BATCH_BYTES = 64 * 2**20
_BATCH_ROWS = 65_536


def column_digests(dataset: Dataset, columns: list[str] | None = None, *, fresh: bool = False) -> dict[str, str]:
    """
    Digests the content of a dataset, column by column.

    A digest depends on the values, the nulls, the row order and the type; not on chunks, slices, an indices mapping,
    the format that is set, or on whether strings and lists are the large kind. A column of memory-mapped files is
    read once in a process, for as long as its memory is the same and its files are not written to.

    Args:
        dataset (`datasets.Dataset`):
            The dataset to read. It is read in batches, so a dataset larger than memory is fine.
        columns (`list[str]`, *optional*):
            The columns to digest. All of them by default.
        fresh (`bool`, *optional*, defaults to `False`):
            Read all rows now, and remember nothing of it.

    Returns:
        `dict[str, str]`: column name to SHA-256 in hexadecimal.
    """
    names = list(dataset.column_names) if columns is None else list(columns)
    missing = [name for name in names if name not in dataset.column_names]
    if missing:
        raise ValueError(f"The dataset has no column {missing[0]!r}; its columns are {dataset.column_names}.")
    if fresh:
        return _read(dataset, names)
    memo = Memo(dataset, _rows_digest(dataset))
    known = memo.known(names)
    new = _read(dataset, [name for name in names if name not in known])
    memo.keep(new)
    return {name: known[name] if name in known else new[name] for name in names}


def _read(dataset: Dataset, names: list[str]) -> dict[str, str]:
    hashers: dict[str, _ColumnHasher] = {}
    for table in _batches(dataset, names):
        for name in names:
            column = table.column(name)
            hasher = hashers.setdefault(name, _ColumnHasher(column.type))
            # Rows gathered through an indices mapping come as one chunk a row.
            gathered = column.combine_chunks()
            for chunk in gathered.chunks if isinstance(gathered, pa.ChunkedArray) else [gathered]:
                hasher.update(chunk)
    return {name: hashers[name].hexdigest() if name in hashers else _EMPTY for name in names}


def content_digest(dataset: Dataset, columns: list[str] | None = None) -> str:
    """
    One SHA-256 for a whole dataset: over its row count and its columns' digests, whatever the order of the columns.

    Args:
        dataset (`datasets.Dataset`):
            The dataset to read.
        columns (`list[str]`, *optional*):
            The columns that count. All of them by default.

    Returns:
        `str`: the digest in hexadecimal.
    """
    return combine(len(dataset), column_digests(dataset, columns))


def combine(rows: int, digests: Mapping[str, str]) -> str:
    """The `content_digest` of a dataset of so many rows whose `column_digests` are known: it is not read again."""
    return hashlib.sha256(json.dumps([rows, sorted(digests.items())]).encode()).hexdigest()


_EMPTY = hashlib.sha256(b"no rows").hexdigest()


def _rows_digest(dataset: Dataset) -> str:
    """Digest of the indices mapping, which is short beside the rows; `""` if there is none."""
    indices = compat.row_indices(dataset)
    if indices is None:
        return ""
    hasher = _ColumnHasher(indices.type)
    for chunk in indices.chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def _batches(dataset: Dataset, columns: list[str]) -> Iterator[pa.Table]:
    rows = len(dataset)
    if rows == 0 or not columns:
        return
    plain = dataset.select_columns(columns).with_format("arrow")
    row_bytes = max(1, dataset.data.nbytes // max(1, dataset.data.num_rows))
    yield from plain.iter(batch_size=int(np.clip(_BATCH_BYTES // row_bytes, 1, _BATCH_ROWS)))


class _ColumnHasher:
    """
    Hashes an array of any type as flat streams, one hash each: is-it-null, lengths and values, and so on downwards.

    Streams carry no batch boundaries, so the digest cannot depend on how the rows were cut into batches.
    """

    def __init__(self, kind: pa.DataType):
        self.kind = _storage(kind)
        self._validity = hashlib.sha256()
        self._lengths = hashlib.sha256()
        self._values = hashlib.sha256()
        self._children = [_ColumnHasher(child) for child in _child_types(self.kind)]

    def update(self, array: pa.Array) -> None:
        array = _plain(array)
        valid = array.is_valid()
        self._validity.update(_bytes(valid.cast(pa.uint8())))
        if pa.types.is_null(array.type):
            return
        if pa.types.is_struct(array.type):
            for hasher, child in zip(self._children, array.filter(valid).flatten(), strict=True):
                hasher.update(child)
            return
        array = array.filter(valid) if array.null_count else array
        if pa.types.is_large_list(array.type):
            self._lengths.update(_bytes(pc.list_value_length(array).cast(pa.int64())))
            self._children[0].update(array.flatten())
        elif pa.types.is_large_binary(array.type):
            self._lengths.update(_bytes(pc.binary_length(array).cast(pa.int64())))
            self._values.update(_variable_bytes(array))
        else:
            self._values.update(_bytes(array))

    def hexdigest(self) -> str:
        parts = [
            _type_name(self.kind),
            self._validity.hexdigest(),
            self._lengths.hexdigest(),
            self._values.hexdigest(),
        ]
        parts += [child.hexdigest() for child in self._children]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _storage(kind: pa.DataType) -> pa.DataType:
    """The one type that stands for all ways to hold the same values."""
    if isinstance(kind, pa.BaseExtensionType):
        return _storage(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _storage(kind.value_type)
    if _is_text(kind):
        return pa.large_string()
    if _is_binary(kind):
        return pa.large_binary()
    if _is_list(kind):
        return pa.large_list(_storage(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _storage(field.type)) for field in kind])
    return kind


def _plain(array: pa.Array) -> pa.Array:
    """The array in its storage type at the top level, with text as bytes and booleans as bytes."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if _is_text(kind):
        return array.cast(pa.large_string()).cast(pa.large_binary())
    if _is_binary(kind):
        return array.cast(pa.large_binary())
    if _is_list(kind):
        return array.cast(pa.large_list(kind.value_type))
    if pa.types.is_boolean(kind):
        return array.cast(pa.uint8())
    return array


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _child_types(kind: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_large_list(kind):
        return [kind.value_type]
    if pa.types.is_struct(kind):
        return [field.type for field in kind]
    return []


def _type_name(kind: pa.DataType) -> str:
    """A name that leaves children to their own hashers, except for the names of a struct's fields."""
    if pa.types.is_large_list(kind):
        return "list"
    if pa.types.is_struct(kind):
        return json.dumps(["struct", [field.name for field in kind]])
    return str(kind)


def _bytes(array: pa.Array) -> Any:
    """The values of a fixed-width array without nulls, as one buffer that starts at its first row."""
    width = array.type.bit_width // 8
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return b""
    return memoryview(buffer)[array.offset * width : (array.offset + len(array)) * width]


def _variable_bytes(array: pa.Array) -> Any:
    """The concatenated bytes of a large_binary array without nulls."""
    _, offsets, data = array.buffers()
    if data is None or len(array) == 0:
        return b""
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]
