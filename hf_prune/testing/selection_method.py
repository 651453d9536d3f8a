"""What every selection method has to do, whatever it chooses by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_prune.selection import Selection, select

SHARES = (0.8, 0.5, 0.1, 1.0)


def check_selection_method(name: str, dataset: Dataset, **options: Any) -> None:
    """
    Checks that a selection method keeps its promises to users.

    It keeps as many rows as it was asked for, each class at its share where it balances, and the same rows in every
    call. If its choice does not depend on the seed, it does not depend on the order of the rows either. A missing
    value in a column that it reads is an error that names the column.

    Args:
        name (`str`):
            The method, as users pass it to [`select`].
        dataset (`datasets.Dataset`):
            A scored dataset of a few hundred rows with an integer or `ClassLabel` column `label`, and all columns that
            the method reads. Its rows must differ.
        **options: Other arguments of [`select`].

    Raises:
        `AssertionError`: if a promise is not kept.
    """
    for keep in (*SHARES, len(dataset) // 3):
        _check_counts(select(dataset, keep, method=name, **options), keep, len(dataset), name)
    chosen = select(dataset, 0.5, method=name, **options)
    _check_classes(chosen, name)
    again = select(dataset, 0.5, method=name, **options)
    _demand(np.array_equal(chosen.keep_indices, again.keep_indices), name, "keeps other rows when it is called again")
    _check_order(chosen, dataset, name, options)
    _check_nulls(chosen, dataset, name, options)


def _check_counts(selection: Selection, keep: float | int, n: int, name: str) -> None:
    kept, dropped = selection.keep_indices, selection.drop_indices
    wanted = keep if isinstance(keep, int) else round(keep * n)
    _demand(len(kept) == wanted, name, f"keeps {len(kept)} of {n} rows with keep={keep}, where {wanted} were meant")
    whole = np.array_equal(np.sort(np.concatenate([kept, dropped])), np.arange(n))
    _demand(whole, name, "keeps or drops some rows twice, or neither keeps nor drops them")
    _demand(bool((np.diff(kept) > 0).all()), name, "returns rows out of order")


def _check_classes(selection: Selection, name: str) -> None:
    if not selection.resolved["balance"]:
        return  # it leaves the classes to chance, and says so
    certificate = selection.certificate
    share = certificate.kept / certificate.n
    after_of = certificate.classes_after or {}
    for label, before in (certificate.classes_before or {}).items():
        after = after_of.get(label, 0)
        near = abs(after - share * before) <= 1
        _demand(near, name, f"keeps {after} of {before} rows of class {label!r}, where {share:.2f} of them were meant")


def _check_order(chosen: Selection, dataset: Dataset, name: str, options: dict[str, Any]) -> None:
    seed = options.get("seed", 0)
    others = [select(dataset, 0.5, method=name, **{**options, "seed": seed + step}) for step in (1, 2)]
    if any(not np.array_equal(chosen.keep_indices, other.keep_indices) for other in others):
        return  # rows that are drawn are drawn by their place
    order = np.random.default_rng(0).permutation(len(dataset))
    moved = select(dataset.select(order.tolist()).flatten_indices(), 0.5, method=name, **options)
    same = np.array_equal(np.sort(order[moved.keep_indices]), chosen.keep_indices)
    _demand(same, name, "keeps other rows when the same rows come in another order, though its seed changes nothing")


def _check_nulls(chosen: Selection, dataset: Dataset, name: str, options: dict[str, Any]) -> None:
    for column in dataset.column_names:
        if column == chosen.certificate.class_column:
            continue  # rows without a class are a class of their own, whose only row is kept
        values = pa.chunked_array(dataset.data.column(column)).combine_chunks()
        missing = pa.concat_arrays([pa.nulls(1, values.type), values.slice(1)])
        broken = dataset.remove_columns(column).add_column(column, missing, feature=dataset.features[column])
        try:
            found = select(broken, 0.5, method=name, **options)
        except (ValueError, TypeError) as error:
            _demand(column in str(error), name, f"refuses a missing value in {column!r} without naming it: {error}")
        else:
            same = np.array_equal(found.keep_indices, chosen.keep_indices)
            _demand(same, name, f"takes a missing value in {column!r} for some value, and keeps other rows by it")


def _demand(kept: bool, name: str, otherwise: str) -> None:
    if not kept:
        raise AssertionError(f"The selection method {name!r} {otherwise}.")
