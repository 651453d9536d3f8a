"""The report's pictures as matplotlib figures, for notebooks, which show one that is a cell's last value."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_prune._core.columns import InfluenceColumns
from hf_prune.report import draw
from hf_prune.report.data import Curve, Gap
from hf_prune.selection import Certificate, Selection
from hf_prune.verification import Verification

SIZE = (4.0, 2.8)
"""Inches; small, so that the words can be read where a phone shows it at its full width."""


class Picture(Figure):
    """A figure that notebooks show whether or not pyplot was imported, with its words readable on a dark page."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with draw.style():
            self.savefig(buffer, format="png", dpi=130, facecolor="white", transparent=False)
        return buffer.getvalue()


def plot_curve(curve: Curve | Mapping[float, Verification]) -> Figure:
    """
    Plots a metric against the share of pruned rows, with 95 % intervals and random's band.

    Args:
        curve (`Curve` or `Mapping[float, Verification]`):
            What was measured; or what [`verify`] returned for each share of pruned rows.

    Returns:
        `matplotlib.figure.Figure`
    """
    found = curve if isinstance(curve, Curve) else Curve.of(curve)
    return picture(lambda ax: draw.draw_curve(ax, found))


def plot_gap(gaps: Sequence[Gap] | Mapping[float, Verification]) -> Figure:
    """
    Plots the observed change of the held-out loss against the predicted one, with the line of equality.

    Args:
        gaps (`Sequence[Gap]` or `Mapping[float, Verification]`):
            One for each subset; or what [`verify`] returned for each share of pruned rows.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        `ValueError`: If nothing was predicted.
    """
    if isinstance(gaps, Mapping):
        found = [gap for rate, of in gaps.items() for gap in Gap.of(rate, of.predicted_loss_change, of)]
    else:
        found = list(gaps)
    if not found:
        raise ValueError(
            "No change of the held-out loss was predicted: pass eval_dataset to add_influence, and verify what prune "
            "returned."
        )
    return picture(lambda ax: draw.draw_gap(ax, found))


def plot_influence(rows: Dataset, selection: Selection | None = None, *, column: str = "influence") -> Figure:
    """
    Plots the distribution of the influence norm: of all rows, or of the kept and of the dropped ones.

    Args:
        rows (`Dataset`): What [`add_influence`] returned.
        selection (`Selection`, *optional*): The selection that was made from these rows.
        column (`str`, *optional*, defaults to `"influence"`): The influence column.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        `ValueError`: If the rows have no such column, or the selection is of other rows.
    """
    name = InfluenceColumns(column).norm
    if name not in rows.column_names:
        raise ValueError(f"The dataset has no column {name!r}: score it with add_influence, or pass `column=`.")
    norms = np.asarray(rows.with_format("numpy", columns=[name])[:][name], dtype=np.float32)
    if selection is None:
        return picture(lambda ax: draw.draw_influence(ax, norms, label="all rows"))
    if len(norms) != selection.n_rows:
        raise ValueError(
            f"The dataset has {len(norms)} rows, the selection is of {selection.n_rows}: pass the rows that it "
            "was made from."
        )
    if selection.applied is not None:
        raise ValueError("The selection is of raw rows, which have no scores: pass the one that was applied to them.")
    return picture(lambda ax: draw.draw_influence(ax, norms[selection.keep_indices], norms[selection.drop_indices]))


def plot_classes(of: Selection | Certificate | Mapping[str, tuple[int, int]], *, most: int = 20) -> Figure:
    """
    Plots the share of each class before and after.

    Args:
        of (`Selection`, `Certificate` or `Mapping[str, tuple[int, int]]`):
            Where the rows before and after are, by class.
        most (`int`, *optional*, defaults to 20):
            Classes to show; those that change most come first if there are more.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        `ValueError`: If the selection knows of no classes.
    """
    classes = of if isinstance(of, Mapping) else class_counts(of.certificate if isinstance(of, Selection) else of)
    if not classes:
        raise ValueError("The selection knows of no classes: name their column with prune(..., balance=...).")
    return picture(lambda ax: draw.draw_classes(ax, classes, most))


def picture(paint: Callable[[Axes], None]) -> Picture:
    """A figure with one axes that `paint` draws on."""
    with draw.style():
        figure = Picture(figsize=SIZE, layout="constrained")
        paint(figure.add_subplot())
    return figure


def class_counts(certificate: Certificate) -> dict[str, tuple[int, int]]:
    """Rows before and after, by class; empty if the certificate knows of no classes."""
    before, after = certificate.classes_before, certificate.classes_after
    return {} if before is None or after is None else {name: (before[name], after[name]) for name in before}
