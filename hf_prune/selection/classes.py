"""The classes whose shares a subset keeps: which column holds them, and how many rows of each stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Value

from hf_prune._core.scoring import scoring_of
from hf_prune.selection.columns import read_column

LABEL_COLUMNS = ("label", "labels")
"""Columns taken for the classes when the user names none."""

ROWS_PER_CLASS = 4
"""An integer column with fewer rows per value than this is not taken for classes unasked: it may be a score or id."""


@dataclass(frozen=True)
class Classes:
    """
    The class of each row.

    Args:
        column (`str`): Column they come from.
        names (`tuple[str, ...]`): Names, in the order of the codes.
        codes (`np.ndarray`): Class of each row, an index into `names`, int64 of shape `(n,)`.
    """

    column: str
    names: tuple[str, ...]
    codes: np.ndarray

    def counts(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Rows of each class, `(classes,)`, among `rows` (indices or mask; all by default)."""
        return np.bincount(self.codes if rows is None else self.codes[rows], minlength=len(self.names))

    def take(self, rows: np.ndarray) -> Classes:
        """The classes of some rows; names of classes without any are left out."""
        found, codes = np.unique(self.codes[rows], return_inverse=True)
        return Classes(self.column, tuple(self.names[i] for i in found), codes.astype(np.int64))

    def kept_counts(self, kept: int) -> np.ndarray:
        """
        Rows of each class that stay when `kept` of all rows stay, by largest remainder; each class keeps one at least.

        Raises:
            `ValueError`: If there are more classes than rows to keep.
        """
        counts = self.counts()
        if kept < len(counts):
            raise ValueError(
                f"Keeping {kept} of {counts.sum()} rows leaves some of the {len(counts)} classes of column "
                f"{self.column!r} empty: keep at least {len(counts)} rows, or pass balance=False."
            )
        result = largest_remainder(counts * (kept / counts.sum()), kept)
        for empty in np.flatnonzero(result == 0):  # a row of its own, from the class that keeps most
            result[empty] = 1
            result[result.argmax()] -= 1
        return result

    def raised(self, kept: int) -> list[str]:
        """Names of the classes whose share of `kept` rows is less than half a row, and that keep one all the same."""
        counts = self.counts()
        shares = largest_remainder(counts * (kept / counts.sum()), kept)
        return [self.names[code] for code in np.flatnonzero(shares == 0)]

    def most_dropped(self) -> int:
        """Rows that can go while every class keeps one."""
        return len(self.codes) - len(self.names)


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `shares` (which sum to `total`) that sum to `total` exactly; ties go to the first."""
    floors = np.floor(shares + 1e-9).astype(np.int64)
    order = np.argsort(floors - shares, kind="stable")
    floors[order[: total - floors.sum()]] += 1
    return floors


def read_classes(dataset: Dataset, balance: str | bool | None) -> Classes | None:
    """
    Reads the classes of a dataset.

    Args:
        dataset (`Dataset`): The dataset.
        balance (`str`, `False` or `None`):
            Column, none at all, or found: the column that the scored run took its labels from, else `label` or
            `labels`; a `ClassLabel`, or integers that repeat.

    Raises:
        `ValueError`: If the column is not there.
        `TypeError`: If its values cannot be classes.
    """
    if balance is False:
        return None
    if balance is not None:
        return _read(dataset, str(balance))
    for column in (*_trained_on(dataset), *LABEL_COLUMNS):
        feature = dataset.features.get(column)
        if isinstance(feature, ClassLabel):
            return _read(dataset, column)
        if isinstance(feature, Value) and pa.types.is_integer(feature.pa_type):
            classes = _read(dataset, column)
            if len(classes.names) * ROWS_PER_CLASS <= len(classes.codes):
                return classes
    return None


def _trained_on(dataset: Dataset) -> list[str]:
    """The column of the labels that the scored run trained on, where it is known."""
    record = scoring_of(dataset)
    column = None if record is None or record.run is None else record.run.run.get("label_column")
    return [column] if isinstance(column, str) else []


def _read(dataset: Dataset, column: str) -> Classes:
    if column not in dataset.column_names:
        raise ValueError(
            f"There is no column {column!r} to balance: pass one of {dataset.column_names}, or balance=False."
        )
    feature: Any = dataset.features[column]
    kind = feature.pa_type if isinstance(feature, (Value, ClassLabel)) else None
    if kind is None or pa.types.is_floating(kind):
        raise TypeError(
            f"Column {column!r} of type {feature} cannot be balanced: pass a column of integers, strings, booleans or "
            "ClassLabel, or balance=False."
        )
    encoded = read_column(dataset, column).dictionary_encode(null_encoding="encode")
    found = encoded.dictionary.to_pylist()
    # by value (rows without one last), not by first appearance: the order of the rows must not change the classes
    order = sorted((i for i, value in enumerate(found) if value is not None), key=lambda i: found[i])
    order += [i for i, value in enumerate(found) if value is None]
    position = np.empty(len(found), dtype=np.int64)
    position[order] = np.arange(len(found))
    names = tuple(_name(feature, found[i]) for i in order)
    return Classes(column, names, position[encoded.indices.to_numpy(zero_copy_only=False)])


def _name(feature: Any, value: Any) -> str:
    if value is None:
        return "(no value)"
    if isinstance(feature, ClassLabel) and 0 <= value < feature.num_classes:
        return str(feature.int2str(value))
    return str(value)
