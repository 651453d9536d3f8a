"""Rows to look at, shown as what they are: images as images, text as text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image, Value

from hf_prune.report.data import Example

MOST = 12
"""Rows of each kind to show."""
LONGEST = 600
"""Characters of a text to show."""


@dataclass(frozen=True)
class ScoredRows:
    """
    Rows with influence columns, and what became of them.

    Args:
        rows (`Dataset`): All rows, or only the kept ones where no others are at hand.
        ids (`np.ndarray`): Their positions in the source, int64 of shape `(rows,)`.
        kept (`np.ndarray`): Whether each was kept, bool of shape `(rows,)`.
        column (`str`): The influence column.
    """

    rows: Dataset
    ids: np.ndarray
    kept: np.ndarray
    column: str

    def numbers(self, suffix: str) -> np.ndarray | None:
        """The column `{column}_{suffix}`, float32 of shape `(rows,)`; None if there is none."""
        name = f"{self.column}_{suffix}"
        if name not in self.rows.column_names:
            return None
        return np.asarray(self.rows.with_format("numpy", columns=[name])[:][name], dtype=np.float32)


def interesting_rows(scored: ScoredRows, *, most: int = MOST) -> list[tuple[str, str, Sequence[Example]]]:
    """
    Picks the rows that a reader should look at.

    Args:
        scored (`ScoredRows`): The rows.
        most (`int`, *optional*, defaults to 12): Rows of each kind.

    Returns:
        `list`: Title, explanation and rows of each kind: the hardest kept, the most redundant, and, if a held-out loss
        was predicted, the most harmful ones. Empty if the rows have no influence columns.
    """
    norm, loss = scored.numbers("norm"), scored.numbers("eval_loss")
    if norm is None:
        return []
    order = np.argsort(norm, kind="stable")
    hardest = [int(i) for i in order[::-1] if scored.kept[i]][:most]
    text = "The model leans on these most: rare cases, border cases, or wrong labels."
    groups = [("Hardest rows that were kept", text, hardest)]
    redundant = [int(i) for i in order[:most]]
    groups.append(("Most redundant rows", "Without one of these hardly anything changes.", redundant))
    if loss is not None:
        harmful = [int(i) for i in np.argsort(loss, kind="stable")[:most] if loss[i] < 0]
        text = (
            "Removing these is predicted to lower the held-out loss most: look for wrong labels. A single row's sign "
            "is uncertain."
        )
        groups.append(("Most harmful rows", text, harmful))
    return [(title, text, _examples(scored, places, norm, loss)) for title, text, places in groups if places]


def _examples(scored: ScoredRows, places: list[int], norm: np.ndarray, loss: np.ndarray | None) -> list[Example]:
    columns = {kind: _find(scored.rows, kind) for kind in ("label", "text", "image")}
    rows = scored.rows.with_format(None).select_columns([name for name in columns.values() if name])
    shown = rows.select(places)
    examples = []
    for place, row in zip(places, shown if shown.column_names else [{}] * len(places), strict=True):
        value = {kind: row[name] if name else None for kind, name in columns.items()}
        example = Example(
            row=int(scored.ids[place]), label=_label(scored.rows, columns["label"], value["label"]),
            norm=float(norm[place]), eval_loss=None if loss is None else float(loss[place]),
            kept=bool(scored.kept[place]), text=_shorten(value["text"]), image=_png(value["image"]),
        )  # fmt: skip
        examples.append(example)
    return examples


def _find(dataset: Dataset, kind: str) -> str | None:
    """The first column that holds images, texts or labels."""
    for name, feature in dataset.features.items():
        if kind == "image" and isinstance(feature, Image):
            return name
        if kind == "text" and isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
            return name
        if kind == "label" and (isinstance(feature, ClassLabel) or name in ("label", "labels")):
            return name
    return None


def _label(dataset: Dataset, column: str | None, value: Any) -> str | None:
    if column is None or value is None:
        return None
    feature = dataset.features[column]
    return feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)


def _shorten(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else text[:LONGEST] + " …"


def _png(image: Any) -> bytes | None:
    if image is None:
        return None
    small = image.copy()
    small.thumbnail((256, 256))
    buffer = io.BytesIO()
    # modes such as CMYK and F have no PNG
    small.convert(small.mode if small.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "RGB").save(buffer, "PNG")
    return buffer.getvalue()
