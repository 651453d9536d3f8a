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
from hf_prune._core.values import (
    field_names,
    fields_of,
    fixed_bytes,
    is_media,
    is_number,
    media_contents,
    plain_array,
    storage_type,
    type_name,
)

_BATCH_BYTES = 64 * 2**20
_BATCH_ROWS = 65_536
_BLOCK = 65_536
"""Numbers that are hashed at once."""


def column_digests(dataset: Dataset, columns: list[str] | None = None, *, fresh: bool = False) -> dict[str, str]:
    """
    Digests the content of a dataset, column by column.

    A digest depends on the values, the nulls, the row order and the kind of the values; not on chunks, slices, an
    indices mapping, the format that is set, the width of numbers, the order of a struct's fields, or on whether
    strings and lists are the large kind. Media are their content, wherever their files lie; the path stands for a
    file that is not here. A column of memory-mapped files is read once in a process, for as
    long as its memory is the same and its files are not written to.

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
        return _read(dataset, names)[0]
    memo = Memo(dataset, _rows_digest(dataset))
    known = memo.known(names)
    new, inside = _read(dataset, [name for name in names if name not in known])
    memo.keep({name: new[name] for name in inside})
    return {name: known[name] if name in known else new[name] for name in names}


def _read(dataset: Dataset, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """The digests, and those of the columns that name no files."""
    hashers: dict[str, _ColumnHasher] = {}
    for table in _batches(dataset, names):
        for name in names:
            column = table.column(name)
            hasher = hashers.setdefault(name, _ColumnHasher(column.type))
            # Rows gathered through an indices mapping come as one chunk a row.
            gathered = column.combine_chunks()
            for chunk in gathered.chunks if isinstance(gathered, pa.ChunkedArray) else [gathered]:
                hasher.update(chunk)
    digests = {name: hashers[name].hexdigest() if name in hashers else _EMPTY for name in names}
    return digests, [name for name in names if name in hashers and hashers[name].inside]


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
        self.kind = storage_type(kind)
        self._validity = hashlib.sha256()
        self._lengths = hashlib.sha256()
        self._values = _Values(hashlib.sha256())
        self._children = [_ColumnHasher(child) for child in _child_types(self.kind)]
        self._any, self._inside = False, True

    def update(self, array: pa.Array) -> None:
        array = plain_array(array)
        valid = array.is_valid()
        self._validity.update(fixed_bytes(valid.cast(pa.uint8())))
        self._any = self._any or len(array) > array.null_count
        array = array.filter(valid) if array.null_count else array
        if pa.types.is_null(array.type):
            return
        if is_media(array.type):
            for content, inside in media_contents(array):
                self._inside = self._inside and inside
                self._lengths.update(len(content).to_bytes(8, "little"))
                self._values.update(content)
        elif pa.types.is_struct(array.type):
            for hasher, child in zip(self._children, fields_of(array), strict=True):
                hasher.update(child)
        elif pa.types.is_large_list(array.type):
            self._lengths.update(fixed_bytes(pc.list_value_length(array).cast(pa.int64())))
            self._children[0].update(array.flatten())
        elif pa.types.is_large_binary(array.type):
            self._lengths.update(fixed_bytes(pc.binary_length(array).cast(pa.int64())))
            self._values.update(_variable_bytes(array))
        elif is_number(array.type):
            self._values.add(array.to_numpy(zero_copy_only=False))
        else:
            self._values.update(fixed_bytes(array))

    @property
    def inside(self) -> bool:
        """Whether all that was hashed lay in the array, and not in files that it names."""
        return self._inside and all(child.inside for child in self._children)

    def hexdigest(self) -> str:
        parts = [
            # what a column of nulls alone was declared as is no value
            type_name(self.kind) if self._any else "nothing",
            self._validity.hexdigest(),
            self._lengths.hexdigest(),
            self._values.hexdigest(),
        ]
        if self._any:
            parts += [child.hexdigest() for child in self._children]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


class _Values:
    """
    The stream of a column's values.

    Numbers go through it in blocks, each as the narrowest kind that holds it: equal numbers are equal bytes in
    whatever width a file or a library keeps them.
    """

    def __init__(self, hasher: Any):
        self._hasher = hasher
        self._waiting: list[np.ndarray] = []
        self._count = 0

    def update(self, content: Any) -> None:
        self._hasher.update(content)

    def add(self, numbers: np.ndarray) -> None:
        while len(numbers):
            part, numbers = np.split(numbers, [_BLOCK - self._count])
            self._waiting.append(part)
            self._count += len(part)
            if self._count == _BLOCK:
                self._flush()

    def hexdigest(self) -> str:
        if self._count:
            self._flush()
        return str(self._hasher.hexdigest())

    def _flush(self) -> None:
        block = np.concatenate(self._waiting)
        self._waiting, self._count = [], 0
        narrow = np.ascontiguousarray(_narrowest(block))
        self._hasher.update(narrow.dtype.str.encode() + narrow.tobytes())


def _narrowest(numbers: np.ndarray) -> np.ndarray:
    if numbers.dtype.kind == "f":
        with np.errstate(over="ignore"):
            single = numbers.astype("<f4")
        found = single if np.array_equal(single, numbers, equal_nan=True) else numbers.astype("<f8")
        found[np.isnan(found)] = np.nan  # of the many kinds of NaN, one
        return found
    low, high = int(numbers.min()), int(numbers.max())
    for kind in ("<i1", "<i2", "<i4", "<i8"):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return numbers.astype(kind)
    return numbers.astype("<u8")


def _child_types(kind: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_large_list(kind):
        return [kind.value_type]
    if pa.types.is_struct(kind) and not is_media(kind):
        return [kind.field(name).type for name in field_names(kind)]
    return []


def _variable_bytes(array: pa.Array) -> Any:
    """The concatenated bytes of a large_binary array without nulls."""
    _, offsets, data = array.buffers()
    if data is None or len(array) == 0:
        return b""
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]
