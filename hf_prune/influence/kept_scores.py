"""The scores that the record keeps: a damaged file must not pass for what was computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_prune._core.reading import one_line
from hf_prune.errors import TrajectoryError
from hf_prune.influence.cache import CACHE, SharedCache


@contextmanager
def reading(cache: SharedCache, name: str) -> Iterator[None]:
    """What the parser of a damaged Arrow file says, in our words."""
    try:
        yield
    except Exception as error:  # what damaged files raise inside the parser is open-ended
        raise TrajectoryError(f"{_where(cache, name)} cannot be read ({one_line(error)}): {CACHE.mend}.") from error


def check_scores(
    scored: Dataset, cache: SharedCache, name: str, columns: list[str], rows: int, *, fresh: bool
) -> None:
    """
    Notes the digests of scores, or compares them with those that were noted.

    Args:
        scored (`Dataset`): The rows with the scores that the cache holds.
        cache (`SharedCache`): Where they are kept.
        name (`str`): The name of their file, without its ending.
        columns (`list[str]`): The columns of scores.
        rows (`int`): How many rows there have to be.
        fresh (`bool`): Whether they were computed just now.

    Raises:
        `TrajectoryError`: if they are others than those that were computed.
    """
    with reading(cache, name):
        table = scored.data.table.select(columns)
        table.validate(full=True)
        found = _digest(table)
    noted = cache.value(f"scores-{name}.json", lambda: found, str, fresh=fresh)
    if len(scored) != rows or noted != found:
        raise TrajectoryError(f"{_where(cache, name)} is damaged (its digest differs): {CACHE.mend}.")


def _digest(table: pa.Table) -> str:
    buffers = [buffer for column in table.columns for chunk in column.chunks for buffer in chunk.buffers()]
    return str(Hasher.hash_bytes([buffer for buffer in buffers if buffer is not None]))


def _where(cache: SharedCache, name: str) -> str:
    return f"The file of scores {cache.directory / name}.arrow"
