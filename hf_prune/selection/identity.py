"""By what the rows that were scored are known again among rows that were not prepared for the model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from hf_prune._core.id_files import reading
from hf_prune._core.reading import Reader
from hf_prune._core.row_digests import SIZE, row_digests

_LONGEST_ENDING = 64
_BATCH = 10_000
_ENDINGS = b"endings"
_UNPACKED, _DENSEST = 2**30, 256
"""Bytes that any file may unpack to, and bytes more for each byte of a file."""


class RowIdentity:
    """
    Digests of the values of scored rows, column by column, read when they are asked for.

    A column of text also has its ending, the text with which all of its values end: `SFTTrainer` and others put an
    end-of-sequence token there.

    Args:
        columns (`Iterable[str]`): The columns.
        dataset (`datasets.Dataset`, *optional*): Where they are read from, if they are not given.
        digests (`dict[str, np.ndarray]`, *optional*): uint8 of shape `(rows, 16)` for each column.
        endings (`dict[str, str]`, *optional*): The endings of the columns of text.
    """

    def __init__(
        self,
        columns: Iterable[str],
        dataset: Dataset | None = None,
        digests: dict[str, np.ndarray] | None = None,
        endings: dict[str, str] | None = None,
    ):
        self.columns = list(columns)
        self._dataset = dataset
        self._digests, self._endings = dict(digests or {}), dict(endings or {})

    def digests(self, name: str) -> np.ndarray:
        """Digest of each value of a column, uint8 of shape `(rows, 16)`."""
        if name not in self._digests and self._dataset is not None:
            self._digests |= row_digests(self._dataset, [name])
        return self._digests[name]

    def ending(self, name: str) -> str:
        """The text with which all values of a column end; empty for other columns."""
        if name not in self._endings and self._dataset is not None:
            self._endings[name] = _common_ending(self._dataset, name)
        return self._endings.get(name, "")

    def to_table(self) -> pa.Table:
        """All columns, for a file."""
        columns = {
            name: pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(SIZE), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
            )
            for name in self.columns
            for values in [self.digests(name)]
        }
        endings = {name: self.ending(name) for name in self.columns}
        return pa.table(columns).replace_schema_metadata({_ENDINGS: json.dumps(endings).encode()})

    @classmethod
    def read(cls, reader: Reader, content: bytes, where: Any, rows: int) -> RowIdentity:
        """
        Reads what `to_table` made from a Parquet file.

        Args:
            reader (`Reader`): Says what is wrong.
            content (`bytes`): The file.
            where (`Any`): Its name, for messages.
            rows (`int`): The rows that it should be about; a small file can unpack to very many.
        """
        with reading(reader, where, "rows"):
            file = pq.ParquetFile(pa.BufferReader(content))
            schema, size = file.schema_arrow, rows * SIZE * len(file.schema_arrow)
            if any(kind != pa.binary(SIZE) for kind in schema.types) or len(set(schema.names)) < len(schema):
                raise reader.error(f"{where} does not hold digests of rows: {reader.mend}.")
            if file.metadata.num_rows != rows or size > _UNPACKED + _DENSEST * len(content):
                raise reader.error(f"{where} has {file.metadata.num_rows:,} rows, not {rows:,}: {reader.mend}.")
            table = file.read(use_threads=False)
        if any(column.null_count for column in table.columns):
            raise reader.error(f"{where} lacks the digests of some rows: {reader.mend}.")
        endings = reader.line((schema.metadata or {}).get(_ENDINGS, b"{}"), dict[str, str], f"{where}, endings,")
        digests = {
            name: np.frombuffer(b"".join(table[name].to_pylist()), np.uint8).reshape(-1, SIZE)
            for name in table.column_names
        }
        return cls(table.column_names, digests=digests, endings=endings)


def _common_ending(dataset: Dataset, name: str) -> str:
    ends: list[str] = []
    for batch in dataset.select_columns([name]).with_format("arrow").iter(_BATCH):
        column = batch.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return ""
        ends += [value[-_LONGEST_ENDING:][::-1] for value in column.drop_null().to_pylist()]
        ends = [min(ends), max(ends)] if ends else []  # what these two share, all do
    return _common_start(*ends)[::-1] if ends else ""


def _common_start(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]
