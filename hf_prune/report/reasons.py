"""Why each dropped row could go, as far as rows tell: duplicates, wrong labels, rows that act alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.row_digests import joined, row_digests
from hf_prune._core.texts import text_columns, text_of
from hf_prune.selection import Selection
from hf_prune.selection.beside_random import DRAWN
from hf_prune.selection.problem import read_problem
from hf_prune.selection.representation import Representation

ALIKE = 0.8
"""Cosine, in what the choice sees of rows, from which on a kept row covers a dropped one."""
SHARED = 0.8
"""Share of words from which on texts are near-duplicates."""
FEWEST_WORDS = 5
"""Words of a text below which sharing them tells little."""
NEIGHBOURS = 8
"""Kept rows whose texts are compared with a dropped row's."""
BLOCK = 512
"""Dropped rows that are compared at once."""


@dataclass(frozen=True)
class Reason:
    """
    Why a row could go.

    Args:
        words (`str`): In words.
        partner (`int`, *optional*): The kept row that stands for it.
        likeness (`float`): How alike the two are: 2 of equal rows, 1 and more of near-duplicates, else the cosine.
    """

    words: str
    partner: int | None = None
    likeness: float = 0.0


def reasons(rows: Dataset, selection: Selection, dropped: np.ndarray, label: str | None) -> dict[int, Reason]:
    """
    Finds a reason for each dropped row.

    Args:
        rows (`Dataset`): All scored rows.
        selection (`Selection`): The selection.
        dropped (`np.ndarray`): Rows to find reasons for, int64.
        label (`str`, *optional*): The column of classes.

    Returns:
        `dict[int, Reason]`: By row.
    """
    method = selection.config.method
    found = {int(row): Reason(_dropped_by(method)) for row in dropped}
    if not len(dropped):
        return found
    others = _labels(rows, label)
    neighbours, cosines = _nearest(rows, selection, dropped)
    words = _words(rows, label)
    for place, row in enumerate(map(int, dropped)):
        if method not in DRAWN:
            found[row] = _covered(neighbours[place], cosines[place], method)
        near = _near_duplicate(row, neighbours[place], words)
        if near is not None:
            found[row] = _duplicate("near-duplicate", row, near[0], others, 1 + near[1])
    for row, twin in _twins(rows, selection, dropped, label).items():
        found[row] = _duplicate("duplicate", row, twin, others, 2.0)
    for row in set(() if selection.certificate.harm is None else selection.certificate.harm.dropped) & found.keys():
        found[row] = Reason("mislabelled? Another class was believed in training")
    return found


def _dropped_by(method: str) -> str:
    return "drawn at random" if method in DRAWN else f"dropped by the method {method}"


def _labels(rows: Dataset, label: str | None) -> Callable[[int, int], bool]:
    """Whether two rows have different classes."""
    if label is None:
        return lambda one, other: False
    values = rows.with_format(None)[label][:]
    return lambda one, other: bool(values[one] != values[other])


def _duplicate(kind: str, row: int, twin: int, differ: Callable[[int, int], bool], likeness: float) -> Reason:
    return Reason(f"{kind} of row {twin}{', labelled otherwise' if differ(row, twin) else ''}", twin, likeness)


def _covered(neighbours: np.ndarray, cosines: np.ndarray, method: str) -> Reason:
    if cosines[0] >= ALIKE:
        return Reason(f"covered by row {neighbours[0]}", int(neighbours[0]), float(cosines[0]))
    if method == "influence":
        return Reason("covered by several kept rows together", None, float(cosines[0]))
    return Reason(_dropped_by(method))


def _nearest(rows: Dataset, selection: Selection, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kept rows nearest to each dropped one, in what the choice sees of rows, and their cosines."""
    config = selection.config
    seen = Representation.of(read_problem(rows, config.column, config.balance, config.centred))

    def unit(which: np.ndarray) -> np.ndarray:
        vectors = seen.take(which)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)

    kept = selection.keep_indices
    candidates = unit(kept)
    count = min(NEIGHBOURS, len(kept))
    places, cosines = [], []
    for start in range(0, len(dropped), BLOCK):
        likeness = unit(dropped[start : start + BLOCK]) @ candidates.T
        best = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(likeness, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        places.append(kept[np.take_along_axis(best, order, axis=1)])
        cosines.append(np.take_along_axis(values, order, axis=1))
    return np.concatenate(places), np.concatenate(cosines)


def _words(rows: Dataset, label: str | None) -> Callable[[int], frozenset[str]]:
    """The words of a row."""
    names = [name for name in text_columns(rows) if name != label]
    plain = rows.with_format(None).select_columns(names)
    memo: dict[int, frozenset[str]] = {}

    def of(row: int) -> frozenset[str]:
        if row not in memo:
            memo[row] = frozenset((text_of(plain[row], names) or "").lower().split()) if names else frozenset()
        return memo[row]

    return of


def _near_duplicate(
    row: int, neighbours: np.ndarray, words: Callable[[int], frozenset[str]]
) -> tuple[int, float] | None:
    own = words(row)
    if len(own) < FEWEST_WORDS:
        return None
    best = max((len(own & words(int(other))) / len(own | words(int(other))), int(other)) for other in neighbours)
    return (best[1], best[0]) if best[0] >= SHARED else None


def _twins(rows: Dataset, selection: Selection, dropped: np.ndarray, label: str | None) -> dict[int, int]:
    """The kept row that equals a dropped one in what a reader sees of it: texts and media, or all that there is."""
    scores = set(InfluenceColumns(selection.config.column))
    shown = [name for name in rows.column_names if name not in scores and name != label]
    readable = [name for name in text_columns(rows) if name in shown]
    media = [name for name in shown if type(rows.features[name]).__name__ in ("Image", "Audio")]
    columns = [*readable, *media] or [name for name in shown if name == "pixel_values"]
    if not columns:
        return {}
    digests = joined(list(row_digests(rows, columns).values()))
    kept = {digests[row]: int(row) for row in reversed(selection.keep_indices.tolist())}
    return {int(row): kept[digests[row]] for row in dropped if digests[row] in kept}
