"""A selection among raw rows: found again by their contents or an id, never by position."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_prune._core.columns import ID_COLUMN, PACKED
from hf_prune._core.row_digests import array_digests, joined, row_digests
from hf_prune.selection.certificate import Certificate
from hf_prune.selection.identity import RowIdentity
from hf_prune.selection.pruned import PrunedDataset
from hf_prune.selection.selection import Applied, Selection

_SAMPLE = 1_000
"""Rows on which endings are tried."""
_NUMBER = (
    f"number the raw rows with with_example_ids, let the Trainer prepare them again (no need to train), score "
    f"those and apply that selection to the numbered rows ({ID_COLUMN!r} is taken out)"
)


def apply(selection: Selection, rows: Any, unseen: str | None, on: str | list[str] | None) -> PrunedDataset:
    """
    Takes the kept rows of another dataset, see [`Selection.apply`].

    Args:
        selection (`Selection`): A selection that knows its rows.
        rows (`Dataset`): The raw rows.
        unseen (`str`, *optional*): `"keep"` or `"drop"`.
        on (`str` or `list[str]`, *optional*): The columns to match by.
    """
    if not isinstance(rows, Dataset):
        raise TypeError(f"apply takes the raw rows as a datasets.Dataset, not a {type(rows).__name__}: pass a split.")
    if unseen not in (None, "keep", "drop"):
        raise ValueError(f"unseen={unseen!r} is not known: pass 'keep' or 'drop'.")
    if selection.identity is None:
        raise ValueError("This selection does not know the rows it was made from: apply the one that prune returned.")
    names = [on] if isinstance(on, str) else on
    places, columns = match(selection.identity, rows, names)
    seen, kept = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    seen[places] = True
    missing = int(len(rows) - seen.sum())
    if missing and unseen is None:
        raise ValueError(
            f"{missing:,} of these {len(rows):,} rows were not among those that were scored, so nothing is known of "
            "them: pass unseen='drop' or unseen='keep'."
        )
    kept[places[selection.keep_indices]] = True
    if unseen == "keep":
        kept |= ~seen
    chosen = Selection(
        keep_indices=np.flatnonzero(kept),
        drop_indices=np.flatnonzero(~kept),
        certificate=_certificate(selection.certificate, places, len(rows), missing, unseen),
        config=selection.config,
        resolved=selection.resolved,
        scoring=selection.scoring,
        applied=Applied(tuple(columns), missing, unseen == "keep" and missing > 0),
    )
    numbered = ID_COLUMN in rows.column_names
    return PrunedDataset.from_source(rows.remove_columns(ID_COLUMN) if numbered else rows, chosen)


def match(identity: RowIdentity, rows: Dataset, on: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """
    Finds the raw row of each scored row.

    Two rows are the same if they agree in all columns that were left as they are, but for an ending that a whole
    column of text may have got. Rows that agree in all that they hold may stand for each other.

    Args:
        identity (`RowIdentity`): The scored rows.
        rows (`Dataset`): The raw rows.
        on (`list[str]`, *optional*): Columns that must agree; by default all shared ones that were left as they are.

    Returns:
        `tuple[np.ndarray, list[str]]`: row of `rows` for each scored row, int64, and the columns that agree.

    Raises:
        `ValueError`: if a scored row has no raw row of its own.
    """
    columns, changed = _unchanged(identity, rows, on)
    try:
        return _matched(identity, rows, columns), list(columns)
    except ValueError as error:
        if not changed:
            raise
        name, missing = min(changed.items(), key=lambda item: item[1])
        raise ValueError(
            f"The scored rows have {missing:,} values of {name!r} that none of these {len(rows):,} rows has: pass all "
            "rows that the Trainer's dataset was made from. If the column was changed, name others in on= or "
            f"{_NUMBER}."
        ) from error


def _matched(identity: RowIdentity, rows: Dataset, columns: dict[str, np.ndarray]) -> np.ndarray:
    if PACKED in identity.columns and PACKED not in columns:
        raise ValueError(
            "The scored rows were packed, each of several raw ones (packing=True): let a Trainer prepare the raw rows "
            "with packing=False (no need to train), score those with train_dataset= the trainer that trained, and "
            "apply that selection."
        )
    if not columns:
        raise ValueError(
            "No column of the raw rows is as it was when rows were scored (they were mapped or renamed), so "
            f"none can be found again: {_NUMBER}."
        )
    groups: dict[bytes, list[int]] = {}
    for place, key in enumerate(joined(list(columns.values()))):
        groups.setdefault(key, []).append(place)
    used: Counter[bytes] = Counter()
    places = []
    for row, key in enumerate(joined([identity.digests(name) for name in columns])):
        found = groups.get(key)
        if found is None:
            raise ValueError(
                f"Scored row {row} is not among these {len(rows):,} rows, by the columns {', '.join(columns)}: pass "
                "the rows that the Trainer's dataset was made from, or name in on= the columns that identify a row."
            )
        if used[key] == len(found):
            raise ValueError(
                f"Several scored rows were made from row {found[0]} of these, by the columns {', '.join(columns)}, so "
                "whether to keep it is not decided: score rows that are made one from one, or select among the "
                "scored rows."
            )
        places.append(found[used[key]])
        used[key] += 1
    _check_interchangeable(rows, [groups[key] for key in used if len(groups[key]) > 1], list(columns))
    return np.array(places, dtype=np.int64)


def _unchanged(
    identity: RowIdentity, rows: Dataset, on: list[str] | None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Digests of the raw rows' columns to match by; of those that share only some values, how many they lack."""
    shared = [name for name in identity.columns if name in rows.column_names]
    for name in on or []:
        if name not in shared:
            raise ValueError(
                f"on= names the column {name!r}, which raw and scored rows do not share: they share {shared}."
            )
    found, changed = {}, {}
    for name in shared if on is None else on:
        values, known = row_digests(rows, [name])[name], _values(identity.digests(name))
        missing = len(known - _values(values))
        if missing:
            ended = _with_ending(rows, name, identity.ending(name), known)
            if ended is None and on is None:
                if missing < len(known):
                    changed[name] = missing
                continue  # its values were changed: it says nothing of which row is which
            values = values if ended is None else ended
        found[name] = values
    return found, changed


def _values(digests: np.ndarray) -> set[bytes]:
    return {bytes(row) for row in digests}


def _with_ending(rows: Dataset, name: str, ending: str, known: set[bytes]) -> np.ndarray | None:
    """Digests of a column of text whose values all got one ending where they had not got it; `None` if none fits."""
    if not ending:
        return None
    column = rows.select_columns([name]).with_format("arrow")
    some = _texts(column.select(range(min(_SAMPLE, len(rows)))), name)
    for start in range(len(ending)):
        if not known.isdisjoint(_values(_ended(some, ending[start:]))):
            values = _ended(_texts(column, name), ending[start:])
            if known <= _values(values):
                return values
    return None


def _texts(column: Dataset, name: str) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in column[:].column(name).to_pylist()]


def _ended(texts: list[str | None], ending: str) -> np.ndarray:
    return array_digests(pa.array([t if t is None or t.endswith(ending) else t + ending for t in texts], pa.string()))


def _check_interchangeable(rows: Dataset, groups: list[list[int]], columns: list[str]) -> None:
    """Rows that agree in the columns they are matched by must agree in all others too."""
    others = [name for name in rows.column_names if name not in columns and name != ID_COLUMN]
    places = [place for group in groups for place in group]
    if not others or not places:
        return
    content = dict(zip(places, joined(list(row_digests(rows.select(places), others).values())), strict=True))
    for group in groups:
        for place in group:
            if content[place] != content[group[0]]:
                raise ValueError(
                    f"Rows {group[0]} and {place} agree in {', '.join(columns)} and differ in {', '.join(others)}, so "
                    f"they cannot be told apart: name columns that tell them in on=, or {_NUMBER}."
                )


def _certificate(before: Certificate, places: np.ndarray, rows: int, missing: int, unseen: str | None) -> Certificate:
    """The certificate, whose figures stay those of the scored rows; ids are those of the raw rows."""
    harm = before.harm
    if harm is not None:
        harm = replace(harm, dropped=tuple(sorted(int(places[row]) for row in harm.dropped)))
    notes = before.notes
    if missing:
        notes += (
            f"{missing:,} of the {rows:,} rows were not among the {before.n:,} that were scored, and are "
            f"{'kept' if unseen == 'keep' else 'dropped'} unseen: the figures say nothing of them.",
        )
    return replace(before, harm=harm, notes=notes)
