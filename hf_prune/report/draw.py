"""The report's pictures, drawn on matplotlib axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from hf_prune._core.units import Unit
from hf_prune.report.data import Curve, Gap
from hf_prune.report.theme import LIGHT
from hf_prune.verification import MeanInterval

INK, PRUNED, RANDOM, FULL, GRID = (LIGHT[name] for name in ("ink", "pruned", "random", "muted", "line"))
"""Colours on a white ground; the page maps them to those of its theme."""
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FULL,
    "xtick.color": FULL,
    "ytick.color": FULL,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "lines.linewidth": 2.0,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of classes come from data, and may hold "$"
}


def style() -> AbstractContextManager[None]:
    """The context in which figures of this module are made and saved."""
    return mpl.rc_context(_STYLE)


def draw_curve(ax: Axes, curve: Curve) -> None:
    """
    Draws a metric against the share of pruned rows, with 95 % intervals and random's band.

    Args:
        ax (`Axes`): Where to draw.
        curve (`Curve`): What was measured.
    """
    if curve.random:
        rates, mean, low, high = _lines(curve, curve.random)
        ax.fill_between(rates, low, high, color=RANDOM, alpha=0.18, linewidth=0)
        ax.plot(rates, mean, color=RANDOM, linestyle="--", marker="s", markersize=4.5, label="random rows")
    rates, mean, low, high = _lines(curve, curve.pruned)
    ax.errorbar(
        rates,
        mean,
        yerr=[np.subtract(mean, low), np.subtract(high, mean)],
        color=PRUNED,
        marker="o",
        markersize=5.5,
        capsize=3.5,
        elinewidth=1.4,
        label="pruned",
    )
    ax.axhline(curve.full.mean, color=FULL, linewidth=1.2, linestyle=":", label="all rows")
    ax.set_xlabel("share of rows pruned")
    ax.set_ylabel(curve.metric)
    ax.set_xticks(rates)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.legend(loc="best")
    if Unit(curve.metric).is_share:
        ax.set_ylim(*np.clip(ax.get_ylim(), 0.0, 1.005))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def draw_gap(ax: Axes, gaps: Sequence[Gap]) -> None:
    """
    Draws the observed change of the held-out loss against the predicted one, with the line of equality.

    Args:
        ax (`Axes`): Where to draw.
        gaps (`Sequence[Gap]`): One for each subset.
    """
    x, y = [gap.predicted for gap in gaps], [gap.observed.mean for gap in gaps]
    ax.errorbar(
        x,
        y,
        yerr=_errors([gap.observed for gap in gaps]),
        color=PRUNED,
        marker="o",
        markersize=5.5,
        linestyle="none",
        capsize=3.5,
        elinewidth=1.4,
        label="pruned",
    )
    for gap, px, py in zip(gaps, x, y, strict=True):
        ax.annotate(f"{gap.rate:.0%}", (px, py), xytext=(6, 4), textcoords="offset points", fontsize=9)
    ends = np.array([ax.get_xlim(), ax.get_ylim()])
    limits = float(ends.min()), float(ends.max())
    ax.plot(limits, limits, color=FULL, linewidth=1.2, linestyle=":", label="equal", zorder=1)
    ax.set_xlim(*limits)
    ax.set_ylim(*limits)
    ax.set_aspect("equal")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("predicted change of held-out loss")
    ax.set_ylabel("observed change")
    ax.legend(loc="best")


def draw_influence(ax: Axes, kept: np.ndarray, dropped: np.ndarray | None = None, *, label: str = "kept") -> None:
    """
    Draws the distribution of the influence norm of kept and of dropped rows.

    Args:
        ax (`Axes`): Where to draw.
        kept (`np.ndarray`): Norms of the kept rows, shape `(kept,)`.
        dropped (`np.ndarray`, *optional*): Norms of the dropped rows, shape `(dropped,)`.
        label (`str`, *optional*, defaults to `"kept"`): What the legend calls the first.
    """
    both = kept if dropped is None else np.concatenate([kept, dropped])
    positive = both[both > 0]
    logarithmic = len(positive) > 0 and positive.max() > 30 * positive.min()
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(numticks=6))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        # a few rows without influence must not stretch the axis over many empty decades
        bins = np.geomspace(max(positive.min(), positive.max() * 1e-6), positive.max() * 1.001, 33)
        clipped = [np.maximum(part, bins[0]) for part in (kept, dropped) if part is not None]
    else:
        bins = np.linspace(0.0, max(float(both.max(initial=0.0)) * 1.001, 1e-12), 33)
        clipped = [part for part in (kept, dropped) if part is not None]
        ax.xaxis.set_major_locator(MaxNLocator(5))
    edges = [float(edge) for edge in bins]
    ax.hist(clipped[0], edges, color=PRUNED, alpha=0.55, label=label)
    if len(clipped) > 1:
        ax.hist(clipped[1], edges, color=RANDOM, histtype="step", linewidth=1.8, label="dropped")
    ax.set_xlabel("influence norm")
    ax.set_ylabel("rows")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="best")


def draw_classes(ax: Axes, classes: Mapping[str, tuple[int, int]], most: int = 20) -> None:
    """
    Draws the share of each class before and after.

    Args:
        ax (`Axes`): Where to draw.
        classes (`dict[str, tuple[int, int]]`): Rows before and after, by class.
        most (`int`, *optional*, defaults to 20): Classes to show; those that change most come first if there are more.
    """
    before, after = (max(1, sum(counts[i] for counts in classes.values())) for i in (0, 1))
    shares = {name: (b / before, a / after) for name, (b, a) in classes.items()}
    names = list(shares)
    if len(names) > most:
        names = sorted(names, key=lambda name: -abs(shares[name][1] - shares[name][0]))[:most]
    place = np.arange(len(names))
    ax.bar(place - 0.2, [shares[name][0] for name in names], 0.38, color=FULL, alpha=0.55, label="before")
    ax.bar(place + 0.2, [shares[name][1] for name in names], 0.38, color=PRUNED, label="after")
    longest = max(12, 40 // max(1, len(names)))
    shown = [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]
    crowded = sum(map(len, shown)) > 40
    ax.set_xticks(place, shown, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    ax.grid(False, axis="x")
    ax.set_ylim(0, 1.22 * max(max(pair) for pair in shares.values()))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylabel("share of rows")
    ax.legend(loc="upper left", ncols=2)


def _lines(curve: Curve, by_rate: Mapping[float, MeanInterval]) -> tuple[list[float], ...]:
    """Rates from 0 (all rows) up, means, and the ends of the intervals (the mean itself where there is none)."""
    points = [(0.0, curve.full), *sorted(by_rate.items())]
    unit = Unit(curve.metric)
    intervals = [unit.clipped(point.interval or (point.mean, point.mean)) for _, point in points]
    return (
        [rate for rate, _ in points],
        [point.mean for _, point in points],
        [low for low, _ in intervals],
        [high for _, high in intervals],
    )


def _errors(estimates: Sequence[MeanInterval]) -> list[list[float]]:
    pairs = [estimate.interval or (estimate.mean, estimate.mean) for estimate in estimates]
    return [
        [estimate.mean - low for estimate, (low, _) in zip(estimates, pairs, strict=True)],
        [high - estimate.mean for estimate, (_, high) in zip(estimates, pairs, strict=True)],
    ]
