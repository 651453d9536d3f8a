"""From prune weights to rows: exact counts first, then swaps that take away what the rounding shifted."""

from __future__ import annotations

import numpy as np

POOL = 256
"""Rows that may be swapped; those whose change costs least, shared out evenly over classes, inside and outside."""
LEAST_PER_SIDE = 4
"""Rows of each class and side in the pool, however many classes there are."""
SWAPS = 400
"""Swaps made at most in one refinement; 100 are common."""


def rank_within(groups: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Position of each row within its group when sorted by the keys, the first key first, then by row; `(n,)`."""
    order = np.lexsort((*reversed(keys), groups))
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - starts[groups[order]]
    return rank


def round_to_counts(
    weights: np.ndarray, reduced_cost: np.ndarray, codes: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """
    Drops from each class exactly `counts` rows: those of the largest weight, and of equal ones the cheapest.

    Args:
        weights (`np.ndarray`): Prune weights, `(n,)`.
        reduced_cost (`np.ndarray`): Breaks ties, `(n,)`.
        codes (`np.ndarray`): Class of each row, `(n,)`.
        counts (`np.ndarray`): Rows to drop of each class, `(classes,)`.

    Returns:
        `np.ndarray`: Mask of the dropped rows, bool of shape `(n,)`.
    """
    # 1e-9: what the solver means by 0 and 1 must not decide
    return rank_within(codes, -np.round(weights, 9), reduced_cost) < counts[codes]


def swap_pool(reduced_cost: np.ndarray, dropped: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Rows whose move changes the cost least, sorted: the fractional ones first of all. Indices of shape `(pool,)`."""
    classes = int(codes.max()) + 1
    each = max(LEAST_PER_SIDE, POOL // (2 * classes))
    return np.flatnonzero(rank_within(2 * codes + dropped, np.abs(reduced_cost)) < each)


def refine(
    vectors: np.ndarray, dropped: np.ndarray, codes: np.ndarray, residual: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """
    Swaps dropped rows with kept ones of their class while that shortens the residual; always the best swap next.

    Args:
        vectors (`np.ndarray`): Centred influence of the pool, `(pool, d)`.
        dropped (`np.ndarray`): Mask over the pool, bool of shape `(pool,)`.
        codes (`np.ndarray`): Class of each row of the pool, `(pool,)`.
        residual (`np.ndarray`): Sum of the vectors over *all* dropped rows, in the pool and elsewhere, `(d,)`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The mask and the residual after the swaps.
    """
    dropped, residual = dropped.copy(), residual.copy()
    first, second = _pairs(codes)
    lengths = ((vectors[first] - vectors[second]) ** 2).sum(axis=1)
    for _ in range(SWAPS):
        along = vectors @ residual
        # +1 where `first` goes back and `second` is dropped instead, -1 the other way; 0 where both are alike, whose
        # change is a squared length and so never taken
        leaves = dropped[first].astype(np.int8) - dropped[second]
        change = lengths - 2.0 * leaves * (along[first] - along[second])
        if not len(change) or change.min() >= -1e-12 * (residual @ residual):
            break
        best = int(change.argmin())
        residual -= leaves[best] * (vectors[first[best]] - vectors[second[best]])
        dropped[[first[best], second[best]]] ^= True
    return dropped, residual


def _pairs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows of one class, each once."""
    firsts, seconds = [], []
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        a, b = np.triu_indices(len(rows), 1)
        firsts.append(rows[a])
        seconds.append(rows[b])
    return np.concatenate(firsts), np.concatenate(seconds)
