"""Ids of rows in Parquet files that may be damaged, or come from somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_prune._core.reading import Reader, one_line

IDS_BYTES = 2**30
MOST_ROWS = 2**27
"""Of a source: their ids take 1 GiB."""
_LONGEST_LIST = 4_096


def read_ids(reader: Reader, content: bytes, where: Any, rows: int, kept: int) -> np.ndarray:
    """
    The ids of the kept rows, once the file's footer says that it holds what it should.

    Args:
        reader (`Reader`): Says what is wrong.
        content (`bytes`): The file: a column `id`, and `kept` where the dropped rows are listed too.
        where (`Any`): Its name, for messages.
        rows (`int`): Rows of the source.
        kept (`int`): Rows that were kept.

    Returns:
        `np.ndarray`: int64 of shape `(kept,)`.
    """
    with reading(reader, where, "ids"):
        file = pq.ParquetFile(pa.BufferReader(content))
        columns = _check_footer(reader, file, where, rows, kept)
        table = file.read(columns=columns, use_threads=False)
    if any(table[name].null_count for name in columns):
        raise reader.error(f"{where} lacks the values of some rows: {reader.mend}.")
    chosen = table.filter(table["kept"]) if "kept" in columns else table
    return chosen["id"].to_numpy()


@contextmanager
def reading(reader: Reader, where: Any, what: str) -> Iterator[None]:
    """What a parser says of a damaged file, in our words."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, MemoryError) as error:
        if type(error) is reader.error:
            raise  # said already
        raise reader.error(f"{where} is not a Parquet file of {what} ({one_line(error)}): {reader.mend}.") from error


def _check_footer(reader: Reader, file: pq.ParquetFile, where: Any, rows: int, kept: int) -> list[str]:
    """The columns to read. A small file can unpack to very many rows, so the footer is compared before that."""
    schema, footer = file.schema_arrow, file.metadata
    if schema.names.count("id") != 1 or schema.field("id").type != pa.int64():
        raise reader.error(f"{where} has no column 'id' of 64-bit integers: {reader.mend}.")
    columns = [name for name in ("id", "kept") if name in schema.names]
    if "kept" in columns and (schema.names.count("kept") != 1 or schema.field("kept").type != pa.bool_()):
        raise reader.error(f"{where} has a column 'kept' that is not boolean: {reader.mend}.")
    expected = rows if "kept" in columns else kept
    if footer.num_rows != expected:
        raise reader.error(f"{where} has {footer.num_rows:,} ids, and {expected:,} were recorded: {reader.mend}.")
    # of the row groups alone: asking for a column of a damaged footer ends the process
    size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    most = expected * sum(_width(field.type) for field in schema) + 65_536 + 4_096 * footer.num_row_groups
    if not 0 <= size <= most:
        raise reader.error(f"{where} unpacks to {size:,} bytes, too many for {expected:,} ids: {reader.mend}.")
    return columns


def _width(kind: pa.DataType) -> int:
    """Most bytes of a value with all that goes with it; columns other than the ids hold scores."""
    if pa.types.is_fixed_size_list(kind):
        return 16 * int(kind.list_size)
    return 16 * (_LONGEST_LIST if pa.types.is_list(kind) or pa.types.is_large_list(kind) else 1)
