"""Files written by others are read within limits: what is too large, too deep or false is refused in one sentence.

Nothing here takes memory that grows with what a file claims; only with its size, which is looked at first.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_prune.publish.escape import one_line

JSON_BYTES = 64 * 2**20
CARD_BYTES = 2 * 2**20
IDS_BYTES = 2**30
MOST_ROWS = 2**27
"""Of a source: their ids take 1 GiB."""
_YAML_NODES = 1_000_000
_LONGEST_LIST = 4_096


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    # JSON Schema takes 1e300 for an integer, and Python counts with what is one
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


class ReplayError(ValueError):
    """The rows cannot be rebuilt; `differences` says in words what differs."""

    def __init__(self, what: str, differences: list[str] | None = None):
        super().__init__("\n- ".join([what, *(differences or [])]))
        self.differences = differences or []


def from_directory(directory: Path, name: str, limit: int) -> bytes | None:
    """Returns the content of a file in a directory, None if it is not there.

    Raises:
        [`ReplayError`]: if it is no regular file or larger than `limit` bytes.
    """
    path = directory / name
    try:
        # without waiting for a writer, which a named pipe may never get
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ReplayError(f"{path} cannot be read: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ReplayError(f"{path} is not a regular file.")
        _check_size(str(path), found.st_size, limit)
        return stream.read(limit)


def from_hub(repo_id: str, name: str, commit: str, token: str | None, limit: int) -> bytes | None:
    """Returns the content of a file of a dataset repository, None if it is not there.

    Raises:
        [`ReplayError`]: if it is larger than `limit` bytes; nothing is downloaded then.
    """
    url = hf_hub_url(repo_id, name, repo_type="dataset", revision=commit)
    try:
        found = get_hf_file_metadata(url, token=token)
    except EntryNotFoundError:
        return None
    _check_size(f"{repo_id}/{name}", found.size, limit)
    return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=commit, token=token)).read_bytes()


def _check_size(where: str, size: int | None, limit: int) -> None:
    if size is None or size > limit:
        told = "an unknown number of" if size is None else f"{size:,}"
        raise ReplayError(f"{where} has {told} bytes, and at most {limit:,} are read.")


def json_object(content: bytes, where: str) -> dict[str, Any]:
    """Returns the object that a JSON document is.

    Raises:
        [`ReplayError`]: if it is not JSON (which has no NaN), not an object, or nested too deeply.
    """
    _check_size(where, len(content), JSON_BYTES)
    try:
        document = json.loads(content, parse_constant=_no_constant, parse_int=_whole, parse_float=_real)
    except RecursionError as error:
        raise ReplayError(f"{where} is nested too deeply to be read.") from error
    except ValueError as error:
        raise ReplayError(f"{where} is not JSON: {one_line(error)}.") from error
    if not isinstance(document, dict):
        raise ReplayError(f"{where} is not a JSON object.")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _whole(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{digits[:30]} is too large a number")
    return number


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:30]} is too large a number")
    return number


def check_schema(document: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    """Refuses a document that its JSON Schema does not allow, naming the first field in the order of their paths.

    Raises:
        [`ReplayError`]: names the field.
    """
    try:
        errors = sorted(_Validator(schema).iter_errors(document), key=lambda one: one.json_path)
    except RecursionError as error:
        raise ReplayError(f"{where} is nested too deeply to be read.") from error
    if errors:
        field = one_line(errors[0].json_path.removeprefix("$").removeprefix(".") or "the document")
        raise ReplayError(f"{where} does not match its schema: {field}: {one_line(errors[0].message)}.")


def utf8(content: bytes, where: str) -> str:
    """Returns the text of a file.

    Raises:
        [`ReplayError`]: if it is not UTF-8.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReplayError(f"{where} is not UTF-8.") from error


def card_metadata(card: str, where: str) -> dict[str, Any]:
    """Returns the YAML metadata of a card, an empty mapping if it has none.

    Raises:
        [`ReplayError`]: if it is not a YAML mapping, or unfolds to more than a million values.
    """
    block = REGEX_YAML_BLOCK.search(card)
    return yaml_mapping(block.group(2), where) if block else {}


def yaml_mapping(text: str, where: str) -> dict[str, Any]:
    """Returns the mapping that a YAML document is; a YAML alias may stand for a mapping that is very large.

    Raises:
        [`ReplayError`]: if it is not a YAML mapping, or unfolds to more than a million values.
    """
    _check_size(where, len(text.encode()), CARD_BYTES)
    try:
        if _yaml_nodes(yaml.compose(text, Loader=yaml.SafeLoader), {}) > _YAML_NODES:
            raise ReplayError(f"The metadata of {where} refers to itself, or unfolds to too many values.")
        data = yaml.safe_load(text)
    except RecursionError as error:
        raise ReplayError(f"The metadata of {where} is nested too deeply to be read.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ReplayError):
            raise
        raise ReplayError(f"The metadata of {where} is not YAML: {one_line(error)}.") from error
    if data is not None and not isinstance(data, dict):
        raise ReplayError(f"The metadata of {where} is not a YAML mapping.")
    return data or {}


def _yaml_nodes(node: Any, known: dict[int, int]) -> int:
    """Number of values once every alias is replaced by what it stands for; a cycle has too many."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _YAML_NODES + 1  # until it is known: met inside itself, it would never end
    children: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    known[id(node)] = min(1 + sum(_yaml_nodes(child, known) for child in children), _YAML_NODES + 1)
    return known[id(node)]


def ids(content: bytes, where: str, rows: int, kept: int) -> np.ndarray:
    """Returns the ids of the kept rows in a Parquet file, once its footer says that it holds what it should.

    Args:
        content (`bytes`): the file: a column `id`, and `kept` where the dropped rows are listed too.
        where (`str`): its name, for messages.
        rows (`int`): rows of the source.
        kept (`int`): rows that were kept.

    Returns:
        `np.ndarray`: int64 of shape `(kept,)`.

    Raises:
        [`ReplayError`]: if it is no Parquet file of so many ids.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        columns = _check_footer(file, where, rows, kept)
        table = file.read(columns=columns, use_threads=False)
    except ReplayError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ReplayError(f"{where} is not a Parquet file of ids: {one_line(error)}.") from error
    if any(table[name].null_count for name in columns):
        raise ReplayError(f"{where} lacks the values of some rows.")
    chosen = table.filter(table["kept"]) if "kept" in columns else table
    return chosen["id"].to_numpy()


def _check_footer(file: pq.ParquetFile, where: str, rows: int, kept: int) -> list[str]:
    """The columns to read. A small file can unpack to very many rows, so the footer is compared before that."""
    schema, footer = file.schema_arrow, file.metadata
    if schema.names.count("id") != 1 or schema.field("id").type != pa.int64():
        raise ReplayError(f"{where} has no column 'id' of 64-bit integers.")
    columns = [name for name in ("id", "kept") if name in schema.names]
    if "kept" in columns and (schema.names.count("kept") != 1 or schema.field("kept").type != pa.bool_()):
        raise ReplayError(f"{where} has a column 'kept' that is not boolean.")
    expected = rows if "kept" in columns else kept
    if footer.num_rows != expected:
        raise ReplayError(f"{where} has {footer.num_rows:,} ids, and {expected:,} were recorded: push the rows again.")
    # of the row groups alone: asking for a column of a damaged footer ends the process
    size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    most = expected * sum(_width(field.type) for field in schema) + 65_536 + 4_096 * footer.num_row_groups
    if not 0 <= size <= most:
        raise ReplayError(f"{where} unpacks to {size:,} bytes, too many for {expected:,} ids.")
    return columns


def _width(kind: pa.DataType) -> int:
    """Most bytes of a value with all that goes with it; columns other than the ids hold scores."""
    if pa.types.is_fixed_size_list(kind):
        return 16 * int(kind.list_size)
    return 16 * (_LONGEST_LIST if pa.types.is_list(kind) or pa.types.is_large_list(kind) else 1)
