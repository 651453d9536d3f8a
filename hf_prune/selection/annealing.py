"""Rows whose vectors sum to little, by simulated annealing."""

from __future__ import annotations

import numpy as np
from datasets.utils import tqdm

SWAPS = 20
"""Swaps tried in the annealing, for each row of the dataset."""
SLOW = 100_000
"""Swaps above which a progress bar is shown."""


def anneal(vectors: np.ndarray, removed: int, seed: int) -> tuple[np.ndarray, float]:
    """
    Rows whose vectors' sum is short, found by swaps of a removed row with a kept one.

    Args:
        vectors (`np.ndarray`): One a row, `(n, p)`.
        removed (`int`): Rows to remove.
        seed (`int`): Draws start and swaps.

    Returns:
        `tuple[np.ndarray, float]`: Mask of the removed rows, bool of shape `(n,)`, and the sum's length.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))
    total = vectors[order[:removed]].sum(axis=0, dtype=np.float64)
    length = np.linalg.norm(total)
    tries = SWAPS * len(vectors) if 0 < removed < len(vectors) else 0
    heat = length / 10
    places = np.stack([rng.integers(0, max(removed, 1), tries), rng.integers(removed, len(vectors), tries)], axis=1)
    luck = np.log(rng.random(tries))
    for step, (out, into) in enumerate(tqdm(places, desc="Annealing", unit="swap", disable=tries < SLOW or None)):
        moved = total - vectors[order[out]] + vectors[order[into]]
        new = np.linalg.norm(moved)
        if length - new > luck[step] * heat * (1 - step / tries) ** 2:
            order[[out, into]] = order[[into, out]]
            total, length = moved, new
    mask = np.zeros(len(vectors), dtype=bool)
    mask[order[:removed]] = True
    return mask, float(length)
