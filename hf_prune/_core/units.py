"""How values of a metric are written: shares in percent, their differences in points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SHARES = ("accuracy", "balanced_accuracy", "exact_match", "f1", "precision", "recall")
"""Metrics that lie in [0, 1], and are shown in percent."""


@dataclass(frozen=True)
class Unit:
    """
    How values of a metric are written.

    Args:
        metric (`str`): Its name.
    """

    metric: str

    @property
    def is_share(self) -> bool:
        return self.metric.removeprefix("eval_") in SHARES

    def value(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.is_share else f"{value:.4g}"

    def spread(self, mean: float, sd: float | None) -> str:
        """A mean and a standard deviation."""
        if sd is None:
            return self.value(mean)
        return f"{100 * mean:.1f} ± {100 * sd:.1f}%" if self.is_share else f"{mean:.4g} ± {sd:.2g}"

    def amount(self, value: float, *, signed: bool = False) -> str:
        """A difference, without its unit."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f}" if self.is_share else f"{value:{sign}.3g}"

    def signed(self, value: float) -> str:
        """A difference with its sign and unit."""
        return self.amount(value, signed=True) + (" points" if self.is_share else "")

    def difference(self, found: Any, *, factor: int = 1) -> str:
        """A difference with its unit and interval; of the other sign where `factor` is -1."""
        text = self.amount(factor * found.mean) + (" points" if self.is_share else "")
        if found.interval is None:
            return text
        low, high = sorted(factor * end for end in found.interval)
        return f"{text} [{self.amount(low)}, {self.amount(high)}]"

    def clipped(self, interval: tuple[float, float]) -> tuple[float, float]:
        """An interval without values that the metric cannot have."""
        return (max(0.0, interval[0]), min(1.0, interval[1])) if self.is_share else interval
