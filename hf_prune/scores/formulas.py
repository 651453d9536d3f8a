"""From visits to scores: one number for each row out of the statistics of its visits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hf_prune.trajectory.visits import Visits


class RowVisits:
    """
    The visits of each of `n` rows, in the order in which they happened.

    Visits without a loss (a row of tokens none of which has a label, an overflow) count as none.

    Args:
        visits ([`Visits`]): All recorded visits.
        rows (`np.ndarray`): `(V,)`; the row of each visit.
        n (`int`): Number of rows.
    """

    def __init__(self, visits: Visits, rows: np.ndarray, n: int):
        known = np.flatnonzero(np.isfinite(visits.loss))
        order = known[np.argsort(rows[known], kind="stable")]
        self.n = n
        self._visits, self._order = visits, order
        self._rows = rows[order]
        self.counts = np.bincount(self._rows, minlength=n)
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self._number = np.arange(len(order)) - starts[self._rows]

    def values(self, name: str) -> np.ndarray:
        """A statistic of all visits, `(V,)`, row by row, float64."""
        return getattr(self._visits, name)[self._order].astype(np.float64)

    def mean(self, values: np.ndarray, first: int | None = None) -> np.ndarray:
        """The mean over each row's visits `(n,)`, or over its `first` ones; NaN for a row without."""
        chosen = slice(None) if first is None else self._number < first
        counts = np.bincount(self._rows[chosen], minlength=self.n)
        total = np.bincount(self._rows[chosen], weights=values[chosen], minlength=self.n)
        return np.divide(total, counts, out=np.full(self.n, np.nan), where=counts > 0)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """The standard deviation over each row's visits `(n,)`, as of a whole population."""
        return np.sqrt(self.mean((values - self.mean(values)[self._rows]) ** 2))

    def last(self, values: np.ndarray) -> np.ndarray:
        """The value at each row's last visit `(n,)`."""
        result = np.full(self.n, np.nan)
        final = self._number == self.counts[self._rows] - 1
        result[self._rows[final]] = values[final]
        return result

    def drops(self, values: np.ndarray) -> np.ndarray:
        """The sum of the falls from each of a row's visits to its next `(n,)`."""
        same = self._rows[1:] == self._rows[:-1]
        falls = np.clip(values[:-1] - values[1:], 0, None)[same]
        return np.bincount(self._rows[1:][same], weights=falls, minlength=self.n).astype(np.float64)


def el2n(visits: RowVisits, early: int) -> np.ndarray:
    """`E |p - y|` over a row's `early` first visits (arXiv 2107.07075)."""
    return visits.mean(visits.values("error_norm"), first=early)


def aum(visits: RowVisits) -> np.ndarray:
    """Area under the margin, the mean of `z_y - max_{c != y} z_c` (arXiv 2001.10528)."""
    return visits.mean(visits.values("margin"))


def confidence(visits: RowVisits) -> np.ndarray:
    """Mean probability of the label (arXiv 2009.10795)."""
    return visits.mean(visits.values("confidence"))


def variability(visits: RowVisits) -> np.ndarray:
    """Standard deviation of the label's probability (arXiv 2009.10795)."""
    return visits.spread(visits.values("confidence"))


def loss(visits: RowVisits) -> np.ndarray:
    """The loss at the row's last visit."""
    return visits.last(visits.values("loss"))


def forgetting(visits: RowVisits) -> np.ndarray:
    """
    Forgetting events: how often a row was classified rightly at one visit and wrongly at the next (arXiv 1812.05159).

    Rows that were never right, which that paper counts as forgotten infinitely often, get the most visits of any row
    plus 1. For a row of tokens, falls of the share of right tokens are summed instead.
    """
    correct = visits.values("correct")
    events = visits.drops(correct)
    share = visits.mean(correct)
    events[share == 0] = visits.counts.max(initial=0) + 1
    events[np.isnan(share)] = np.nan
    return events


FORMULAS: dict[str, Callable[[RowVisits], np.ndarray]] = {
    "forgetting": forgetting,
    "aum": aum,
    "loss": loss,
    "confidence": confidence,
    "variability": variability,
}
