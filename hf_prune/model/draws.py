"""How often each training row is drawn, as far as its recorded visits tell."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2, chisquare, poisson

LEVEL = 1e-3
"""Chance that rows which are drawn equally often are taken for others."""
EXPECTED = 5.0
"""Rows that a bin of the test holds at least, if all are drawn equally often."""


def draw_shares(counts: np.ndarray) -> np.ndarray:
    """
    The share of all visits that each row has in expectation over the sampler's draws.

    1/n where the counts are what an equal chance for every row leaves: whole epochs, the last of which may be cut, or
    draws with replacement. Otherwise (weights, rows left out, oversampled ones) the counts' own. In less than two
    epochs a row that is left out cannot be told from one whose turn did not come.

    Args:
        counts (`np.ndarray`): Recorded visits of each row, `(n,)`.

    Returns:
        `np.ndarray`: float64 of shape `(n,)`, with sum 1.
    """
    if _of_epochs(counts) or _of_draws(counts):
        return np.full(len(counts), 1 / len(counts))
    return counts / counts.sum()


def _of_epochs(counts: np.ndarray) -> bool:
    """Whether each row was visited once in each of some epochs, and at most once in a part of one at the end."""
    return int(counts.max() - counts.min()) <= 1


def _of_draws(counts: np.ndarray) -> bool:
    """Whether the counts look like those of draws with replacement: Poisson, by their variance and their histogram."""
    mean = counts.mean()
    if ((counts - mean) ** 2).sum() / mean > chi2.isf(LEVEL, len(counts) - 1):
        return False
    edges = [0]
    for value in range(int(counts.max()) + 1):
        below = poisson.cdf(value, mean) - poisson.cdf(edges[-1] - 1, mean)
        above = poisson.sf(value, mean)
        if len(counts) * min(below, above) >= EXPECTED:
            edges.append(value + 1)
    if len(edges) < 3:  # too few visits to tell more than their variance does
        return True
    observed = np.bincount(np.searchsorted(edges, counts, side="right") - 1, minlength=len(edges))
    upper = np.array([poisson.cdf(edge - 1, mean) for edge in edges[1:]] + [1.0])
    expected = len(counts) * np.diff(np.concatenate([[0.0], upper]))
    return bool(chisquare(observed, expected, ddof=1).pvalue > LEVEL)
