"""Noisy values of single rows, drawn towards those of rows that the model sees alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_prune.selection.vectors import Vectors

PENALTIES = 10.0 ** np.arange(-3, 3.5, 0.5)
"""Ridge penalties that are tried, in units of the mean variance of a feature."""


@dataclass(frozen=True)
class Pooled:
    """
    Values of rows, pooled over like rows.

    Args:
        values (`np.ndarray`): Float64 of shape `(n,)`, around 0.
        share (`float`): Share of the variance of the given values that the features explain, in [0, 1).
    """

    values: np.ndarray
    share: float


def pooled(values: np.ndarray, features: Vectors) -> Pooled:
    """
    What ridge regression on the features predicts, and of what is left the share that they do not explain.

    Where features explain much, what is left is mostly noise; where they explain nothing, the values stay as they are.
    Penalty and explained share are those of generalized cross-validation (Golub, Heath and Wahba, Technometrics 1979).

    Args:
        values (`np.ndarray`): One number a row, `(n,)`.
        features (`Vectors`): What the model makes of the rows, `n` times `(d,)`; read block by block, twice.
    """
    n, d = len(values), features.k
    target = values.astype(np.float64) - values.mean(dtype=np.float64)
    mean, gram, cross = np.zeros(d), np.zeros((d, d)), np.zeros(d)
    for rows, block in features.blocks():
        block = block.astype(np.float64)
        mean += block.sum(axis=0) / n
        gram += block.T @ block / n
        cross += block.T @ target[rows] / n
    squares = gram.diagonal().copy()
    gram -= np.outer(mean, mean)
    varies = gram.diagonal() > 1e-10 * squares
    scale = np.where(varies, np.sqrt(np.where(varies, gram.diagonal(), 1)), np.inf)  # what is constant counts nothing
    spectrum, basis = np.linalg.eigh(gram / np.outer(scale, scale))
    spectrum, along = np.clip(spectrum, 1e-12, None), basis.T @ (cross / scale)
    variance = float(target @ target) / n
    errors = []
    for penalty in PENALTIES:
        hat = spectrum / (spectrum + penalty)
        residual = variance - float((along**2 / spectrum * hat * (2 - hat)).sum())
        errors.append(residual / max(1 - (hat.sum() + 1) / n, 1e-9) ** 2)
    best = int(np.argmin(errors))
    weights = basis @ (along / (spectrum + PENALTIES[best])) / scale
    share = float(np.clip(1 - errors[best] / variance, 0, 1)) if variance > 0 else 0.0
    fitted = np.concatenate([(block - mean) @ weights for _, block in features.blocks()])
    return Pooled(fitted + (1 - share) * (target - fitted), share)
