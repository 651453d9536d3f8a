"""Digests of single values: rows are known again by them, wherever they lie and in whatever order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_prune._core.values import (
    field_names,
    fields_of,
    is_media,
    is_number,
    media_contents,
    plain_array,
    storage_type,
    type_name,
)

SIZE = 16
"""Bytes of a digest."""
_BATCH_ROWS = 1_000
_BEYOND = 9
"""First byte of whole numbers from 2**63 on."""


def row_digests(dataset: Dataset, columns: list[str]) -> dict[str, np.ndarray]:
    """
    Digests every value of some columns; equal values have equal digests, in the sense of `column_digests`.

    Args:
        dataset (`datasets.Dataset`): The rows, read in batches.
        columns (`list[str]`): The columns to digest.

    Returns:
        `dict[str, np.ndarray]`: for each column uint8 of shape `(rows, 16)`.
    """
    found: dict[str, list[np.ndarray]] = {name: [np.empty((0, SIZE), np.uint8)] for name in columns}
    if columns and len(dataset):
        for table in dataset.select_columns(columns).with_format("arrow").iter(_BATCH_ROWS):
            for name in columns:
                found[name].append(array_digests(table.column(name).combine_chunks()))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def array_digests(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Digests of the values of an array, uint8 of shape `(values, 16)`; a missing value's is 0."""
    if isinstance(array, pa.ChunkedArray):
        return np.concatenate([np.empty((0, SIZE), np.uint8), *map(array_digests, array.chunks)])
    name, array = type_name(storage_type(array.type)), plain_array(array)
    found = np.zeros((len(array), SIZE), np.uint8)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if valid.any():
        found[valid] = _digests(array.filter(pa.array(valid)) if array.null_count else array, name)
    return found


def joined(digests: list[np.ndarray]) -> list[bytes]:
    """One digest a row of the digests of several columns."""
    return [bytes(row) for row in _hashed(np.concatenate(digests, axis=1), "row")]


def _digests(array: pa.Array, name: str) -> np.ndarray:
    """Of an array without missing values, in its plain form."""
    kind = array.type
    if is_media(kind):
        return _hash((content for content, _ in media_contents(array)), "media")
    if pa.types.is_struct(kind):
        fields = [array_digests(field) for field in fields_of(array)]
        return _hashed(np.concatenate(fields, axis=1), name) if field_names(kind) else _hash([b""] * len(array), name)
    if pa.types.is_large_list(kind):
        return _lists(array.flatten(), np.cumsum(pc.list_value_length(array).to_numpy(zero_copy_only=False)), name)
    if pa.types.is_large_binary(kind):
        return _hash((value.as_buffer() for value in array), name)
    if is_number(kind):
        return _numbers(array.to_numpy(zero_copy_only=False), name)
    return _hash((repr(value).encode() for value in array.to_pylist()), name)


def _lists(items: pa.Array, ends: np.ndarray, name: str) -> np.ndarray:
    if not is_number(items.type) or not len(items):
        return _slices(array_digests(items).tobytes(), SIZE * ends, name)
    # most lists of numbers have eight bytes a number; empty ones, and those with what these cannot tell, do not
    starts, kind = np.concatenate([[0], ends[:-1]]), type_name(items.type)
    apart = ends == starts
    digests = None
    if items.null_count or pa.types.is_uint64(items.type):
        digests = array_digests(items)
        odd = np.concatenate([[0], np.cumsum(digests[:, 0] != _tag(kind))])
        apart |= odd[ends] > odd[starts]
        content = digests[:, 8:].tobytes()
    else:
        content = _eight_bytes(items.to_numpy(zero_copy_only=False)).tobytes()
    found = _slices(content, 8 * ends, f"{name} of {kind}")
    for row in np.flatnonzero(apart):
        own = b"" if digests is None else digests[starts[row] : ends[row]].tobytes()
        found[row] = _hash([own], name)[0]
    return found


def _tag(name: str) -> int:
    return 1 + ("bool", "integer", "float").index(name)


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers are their own digests, at the greatest width."""
    found = np.zeros((len(values), SIZE), np.uint8)
    found[:, 0] = _tag(name)
    if values.dtype.kind == "u":
        found[values.astype("<u8") >= 2**63, 0] = _BEYOND  # as a signed number it would be a negative one
    found[:, 8:] = _eight_bytes(values).view(np.uint8).reshape(-1, 8)
    return found


def _eight_bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        wide = values.astype("<f8")
        wide[np.isnan(wide)] = np.nan
        return wide
    return values.astype("<u8" if values.dtype.kind == "u" else "<i8")


def _hashed(rows: np.ndarray, name: str) -> np.ndarray:
    width = rows.shape[1]
    return _slices(rows.tobytes(), width * np.arange(1, len(rows) + 1), name)


def _slices(content: bytes, ends: np.ndarray, name: str) -> np.ndarray:
    starts = [0, *ends[:-1].tolist()]
    values = memoryview(content)
    return _hash((values[start:end] for start, end in zip(starts, ends.tolist(), strict=True)), name)


def _hash(contents: Iterable[Any], name: str) -> np.ndarray:
    base = hashlib.blake2b(name.encode(), digest_size=SIZE)
    found = bytearray()
    for content in contents:
        hasher = base.copy()
        hasher.update(content)
        found += hasher.digest()
    return np.frombuffer(found, np.uint8).reshape(-1, SIZE)
