"""Check sums of scored rows: row by row they tell whether scores and contents are those of the scoring.

They stand against accidents and forgetting. Whoever alters a row on purpose can write its check sum anew; only scoring
again from the recorded run, as `replay(level=2)` does, tells that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset, Value
from datasets.fingerprint import Hasher

from hf_prune._core import compat
from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.row_digests import joined, row_digests

_BITS = 12
"""Bits of each part of a check sum: vector and norm, held-out loss, features, what was trained on, other columns."""
_AT_ONCE = 10_000
_MASK = np.uint64(2**_BITS - 1)
_SCORES, _TRAINED, _OTHERS = (0, 1, 2), 3, 4


@dataclass(frozen=True)
class Checked:
    """
    How many rows are not as they were scored.

    Args:
        scores (`int`): Rows of which a score was altered, or made otherwise.
        trained (`int`): Rows of which the model was trained on other contents.
        others (`int`): Rows of which something else was changed.
    """

    scores: int
    trained: int
    others: int


def with_checks(dataset: Dataset, column: str, trained: list[str], others: list[str]) -> Dataset:
    """
    Adds the check sums of rows that were scored just now.

    Args:
        dataset (`datasets.Dataset`): Rows with influence columns.
        column (`str`): Name of the influence column.
        trained (`list[str]`): The columns that the model was trained on.
        others (`list[str]`): The other columns that were there.
    """
    name = InfluenceColumns(column).check
    if name in dataset.column_names:  # of an earlier scoring
        dataset = dataset.remove_columns(name)
    sums = np.zeros(len(dataset), np.uint64)
    for rows in _slices(len(dataset)):
        for part, values in _parts(dataset.select(rows), column, trained, others).items():
            sums[rows.start : rows.stop] |= values << np.uint64(_BITS * part)
    return dataset.add_column(
        name,
        sums.view(np.int64),
        new_fingerprint=Hasher.hash([compat.fingerprint(dataset), name, trained, others]),
        feature=Value("int64"),
    )


def check(dataset: Dataset, column: str, trained: list[str], others: list[str]) -> Checked:
    """
    Compares rows with their check sums, as far as the columns are there.

    Args:
        dataset (`datasets.Dataset`): Rows with influence columns and check sums.
        column (`str`): Name of the influence column.
        trained (`list[str]`): The columns that the model was trained on.
        others (`list[str]`): The other columns that were there.
    """
    name = InfluenceColumns(column).check
    known = dataset.select_columns([name]).with_format("arrow")[:].column(name)
    if not pa.types.is_int64(known.type):
        return Checked(len(dataset), 0, 0)
    sums = np.ascontiguousarray(known.fill_null(0).to_numpy()).view(np.uint64)
    wrong = np.zeros((_OTHERS + 1, len(dataset)), dtype=bool)
    for rows in _slices(len(dataset)):
        own = sums[rows.start : rows.stop]
        for part, values in _parts(dataset.select(rows), column, trained, others).items():
            wrong[part, rows.start : rows.stop] = (own >> np.uint64(_BITS * part)) & _MASK != values
    return Checked(int(wrong[list(_SCORES)].any(axis=0).sum()), int(wrong[_TRAINED].sum()), int(wrong[_OTHERS].sum()))


def _slices(rows: int) -> list[range]:
    """Rows in turn, so that digests of a large dataset take the memory of some."""
    return [range(start, min(start + _AT_ONCE, rows)) for start in range(0, rows, _AT_ONCE)]


def _parts(dataset: Dataset, column: str, trained: list[str], others: list[str]) -> dict[int, np.ndarray]:
    """Of each part whose columns are all there, the sum of each row."""
    names = InfluenceColumns(column)
    made_of = ([names.vector, names.norm], [names.eval_loss], [names.features], trained, others)
    there = {part: group for part, group in enumerate(made_of) if group and set(group) <= set(dataset.column_names)}
    digests = row_digests(dataset, list(dict.fromkeys(name for group in there.values() for name in group)))
    found = {}
    for part, group in there.items():
        whole = np.frombuffer(b"".join(joined([digests[name] for name in group])), np.uint64)
        found[part] = whole.reshape(len(dataset), -1)[:, 0] & _MASK
    return found
