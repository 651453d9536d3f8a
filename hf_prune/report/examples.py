"""Rows to look at, shown as what they are: images as images, sounds as sounds, text as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Audio, ClassLabel, Dataset, Image

from hf_prune._core.texts import label_of, text_columns, text_of
from hf_prune.report import media
from hf_prune.report.data import Example, ListedRow, Pair
from hf_prune.report.reasons import Reason

MOST = 16
"""Rows of each kind to show."""
MOST_LISTED = 10_000
"""Rows to search: a page of 10,000 has some 2 MB, which a phone still opens."""
LONGEST_LISTED = 140
"""Characters of a text in the list."""
_KINDS = ("image", "audio", "label")


@dataclass(frozen=True)
class ScoredRows:
    """
    Rows with influence columns, and what became of them.

    Args:
        rows (`Dataset`): All rows, or only the kept ones where no others are at hand.
        ids (`np.ndarray`): Their positions in the source, int64 of shape `(rows,)`.
        kept (`np.ndarray`): Whether each was kept, bool of shape `(rows,)`.
        column (`str`): The influence column.
        reasons (`Mapping[int, Reason]`): Why rows were dropped, by position.
    """

    rows: Dataset
    ids: np.ndarray
    kept: np.ndarray
    column: str
    reasons: Mapping[int, Reason] = field(default_factory=dict)

    def numbers(self, suffix: str) -> np.ndarray | None:
        """The column `{column}_{suffix}`, float32 of shape `(rows,)`; None if there is none."""
        name = f"{self.column}_{suffix}"
        if name not in self.rows.column_names:
            return None
        return np.asarray(self.rows.with_format("numpy", columns=[name])[:][name], dtype=np.float32)

    @property
    def label(self) -> str | None:
        """The column of classes."""
        return _find(self.rows, "label")

    @property
    def shown(self) -> np.ndarray:
        """The rows to list, dropped ones first where they are too many for a page, int64, in order."""
        return np.sort(np.argsort(self.kept, kind="stable")[:MOST_LISTED])


def interesting_rows(scored: ScoredRows, *, most: int = MOST) -> list[tuple[str, str, Sequence[Example]]]:
    """
    Picks the rows that a reader should look at.

    Args:
        scored (`ScoredRows`): The rows.
        most (`int`, *optional*, defaults to 16): Rows of each kind.

    Returns:
        `list`: Title, explanation and rows of each kind: the hardest kept, the most redundant, and, if a held-out loss
        was predicted, the most harmful ones. Empty if the rows have no influence columns.
    """
    norm, loss = scored.numbers("norm"), scored.numbers("eval_loss")
    if norm is None:
        return []
    groups = []
    if loss is not None:
        harmful = [int(i) for i in np.argsort(loss, kind="stable")[:most] if loss[i] < 0]
        text = (
            "Removing these is predicted to lower the held-out loss most: look for wrong labels. A single row's sign "
            "is uncertain."
        )
        groups.append(("Most harmful rows", text, harmful))
    order = np.argsort(norm, kind="stable")
    hardest = [int(i) for i in order[::-1] if scored.kept[i]][:most]
    text = "The model leans on these most: rare cases, border cases, or wrong labels."
    groups.append(("Hardest rows that were kept", text, hardest))
    redundant = [int(i) for i in order[:most]]
    groups.append(("Most redundant rows", "Without one of these hardly anything changes.", redundant))
    return [(title, text, _examples(scored, places, norm, loss)) for title, text, places in groups if places]


def pairs_of(scored: ScoredRows, *, most: int = MOST) -> list[Pair]:
    """
    The dropped rows that are most like a kept one, each beside it.

    Args:
        scored (`ScoredRows`): The rows, with reasons.
        most (`int`, *optional*, defaults to 16): Pairs.
    """
    norm = scored.numbers("norm")
    matched = {row: reason for row, reason in scored.reasons.items() if reason.partner is not None}
    chosen = sorted(matched, key=lambda row: (-matched[row].likeness, row))[:most]
    if norm is None or not chosen:
        return []
    loss = scored.numbers("eval_loss")
    dropped = _examples(scored, chosen, norm, loss)
    kept = _examples(scored, [int(matched[row].partner or 0) for row in chosen], norm, loss)
    return [Pair(*pair) for pair in zip(dropped, kept, (matched[row].words for row in chosen), strict=True)]


def listed_rows(scored: ScoredRows) -> list[ListedRow]:
    """The rows to search, with the beginnings of their texts."""
    norm, label = scored.numbers("norm"), scored.label
    if norm is None:
        return []
    names = [name for name in text_columns(scored.rows) if name != label]
    plain = scored.rows.with_format(None)
    read = plain.select_columns([*names, *([label] if label else [])]) if names or label else None
    listed = []
    for place in map(int, scored.shown):
        row = {} if read is None else read[place]
        words = " ".join((text_of(row, names) or "").split())
        reason = scored.reasons.get(place)
        listed.append(
            ListedRow(
                row=int(scored.ids[place]),
                label=media.shorten(label_of(scored.rows, label, row[label] if label else None)),
                kept=bool(scored.kept[place]),
                norm=float(norm[place]),
                reason="" if reason is None else reason.words,
                text=words if len(words) <= LONGEST_LISTED else words[:LONGEST_LISTED] + " …",
            )
        )
    return listed


def _examples(scored: ScoredRows, places: list[int], norm: np.ndarray, loss: np.ndarray | None) -> list[Example]:
    columns = {kind: _find(scored.rows, kind) for kind in _KINDS}
    texts = [name for name in text_columns(scored.rows) if name != columns["label"]]
    rows = _undecoded(scored.rows.with_format(None).select_columns([*texts, *filter(None, columns.values())]))
    shown = rows.select(places)
    examples = []
    for place, row in zip(places, shown if shown.column_names else [{}] * len(places), strict=True):
        value = {kind: row[name] if name else None for kind, name in columns.items()}
        image, no_image = _tried(media.picture, value["image"])
        audio, no_audio = _tried(media.sound, value["audio"])
        example = Example(
            row=int(scored.ids[place]),
            label=media.shorten(label_of(scored.rows, columns["label"], value["label"])),
            norm=float(norm[place]),
            eval_loss=None if loss is None else float(loss[place]),
            kept=bool(scored.kept[place]),
            text=media.shorten(text_of(row, texts)),
            image=image,
            audio=audio,
            remark=no_image or no_audio,
            reason=scored.reasons[place].words if place in scored.reasons else None,
        )
        examples.append(example)
    return examples


def _find(dataset: Dataset, kind: str) -> str | None:
    """The first column that holds images, sounds or labels; pixels that a model takes only where nothing else is."""
    for name, feature in dataset.features.items():
        if kind == "image" and isinstance(feature, Image):
            return name
        if kind == "audio" and isinstance(feature, Audio):
            return name
        if kind == "label" and (isinstance(feature, ClassLabel) or name in ("label", "labels")):
            return name
    return "pixel_values" if kind == "image" and "pixel_values" in dataset.column_names else None


def _undecoded(rows: Dataset) -> Dataset:
    """The rows with images and sounds as files: decoding may need what is not installed, and fails on damaged ones."""
    for name, feature in rows.features.items():
        if isinstance(feature, Image | Audio):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _tried(show: Callable[[Any], bytes], value: Any) -> tuple[bytes | None, str | None]:
    """What is shown of a value, or why nothing is."""
    if value is None:
        return None, None
    try:
        return show(value), None
    except ValueError as error:
        return None, str(error)
