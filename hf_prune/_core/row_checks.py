"""Check sums of scored rows: row by row they tell whether scores and contents are those of the scoring.

They stand against accidents and forgetting. Whoever alters a row on purpose can write its check sum anew; only scoring
again from the recorded run, as `replay(level=2)` does, tells that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Value
from datasets.fingerprint import Hasher

from hf_prune._core import compat
from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.row_digests import joined, row_digests

_LANES = 4
"""Parts of a check sum, 16 bits each: vector and norm, held-out loss, features, contents."""


@dataclass(frozen=True)
class Checked:
    """
    How many rows are not as they were scored.

    Args:
        scores (`int`): Rows of which a score was altered, or made otherwise.
        contents (`int`): Rows of which the model was trained on other contents.
    """

    scores: int
    contents: int


def with_checks(dataset: Dataset, column: str, contents: list[str]) -> Dataset:
    """
    Adds the check sums of rows that were scored just now.

    Args:
        dataset (`datasets.Dataset`): Rows with influence columns.
        column (`str`): Name of the influence column.
        contents (`list[str]`): The columns that the model was trained on.
    """
    name = InfluenceColumns(column).check
    lanes = np.zeros((len(dataset), _LANES), np.uint16)
    for lane, values in _lanes(dataset, column, contents).items():
        lanes[:, lane] = values
    return dataset.add_column(
        name,
        lanes.view(np.int64).ravel(),
        new_fingerprint=Hasher.hash([compat.fingerprint(dataset), name, contents]),
        feature=Value("int64"),
    )


def check(dataset: Dataset, column: str, contents: list[str]) -> Checked:
    """
    Compares rows with their check sums, as far as the columns are there.

    Args:
        dataset (`datasets.Dataset`): Rows with influence columns and check sums.
        column (`str`): Name of the influence column.
        contents (`list[str]`): The columns that the model was trained on.
    """
    name = InfluenceColumns(column).check
    known = dataset.select_columns([name]).with_format("arrow")[:].column(name).to_numpy()
    lanes = np.ascontiguousarray(known, dtype=np.int64).view(np.uint16).reshape(-1, _LANES)
    wrong = np.zeros((len(dataset), _LANES), dtype=bool)
    for lane, values in _lanes(dataset, column, contents).items():
        wrong[:, lane] = lanes[:, lane] != values
    return Checked(int(wrong[:, :3].any(axis=1).sum()), int(wrong[:, 3].sum()))


def _lanes(dataset: Dataset, column: str, contents: list[str]) -> dict[int, np.ndarray]:
    names = InfluenceColumns(column)
    parts = ([names.vector, names.norm], [names.eval_loss], [names.features], contents)
    there = {lane: part for lane, part in enumerate(parts) if part and set(part) <= set(dataset.column_names)}
    digests = row_digests(dataset, list(dict.fromkeys(name for part in there.values() for name in part)))
    return {
        lane: np.frombuffer(b"".join(joined([digests[name] for name in part])), np.uint16).reshape(len(dataset), -1)[
            :, 0
        ]
        for lane, part in there.items()
    }
