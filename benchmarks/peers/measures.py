"""How well predictions agree with the truth."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def relative_error(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(predicted - truth) / np.linalg.norm(truth))


def spearman_columns(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column of `a (s, m)` with that of `b (s, m)`: `(m,)`."""
    ranks = [rankdata(x, axis=0) for x in (a, b)]
    centred = [r - r.mean(0) for r in ranks]
    lengths = [np.maximum(np.sqrt((c**2).sum(0)), 1e-12) for c in centred]
    return (centred[0] * centred[1]).sum(0) / (lengths[0] * lengths[1])


def fidelity(predicted: np.ndarray, shifts: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """
    Predicted against true shifts of margins, each `(sets, m)`, at base margins `(m,)`.

    - `margin_r`: Pearson over all pairs of set and test row;
    - `row_rho`: Spearman over the sets, its mean over the test rows;
    - `loss_r`: Pearson of the change of the mean test loss, which the predicted margins give by `softplus(-margin)`;
    - `loss_linear_r`: the same from the loss's slope alone, which has no scale: for scores in unknown units;
    - `margin_error`, `loss_error`: length of the error over length of the truth.
    """
    true_loss = (softplus(-(base + shifts)) - softplus(-base)).mean(1)
    loss = (softplus(-(base + predicted)) - softplus(-base)).mean(1)
    slope = -1 / (1 + np.exp(base))
    return {
        "margin_r": pearson(predicted, shifts),
        "row_rho": float(spearman_columns(predicted, shifts).mean()),
        "loss_r": pearson(loss, true_loss),
        "loss_linear_r": pearson((predicted * slope).mean(1), true_loss),
        "margin_error": relative_error(predicted, shifts),
        "loss_error": relative_error(loss, true_loss),
    }


def of_sets(scores: np.ndarray, sets: list[np.ndarray]) -> np.ndarray:
    """Sums of rows of scores `(n, m)` over each set: `(sets, m)`."""
    return np.stack([scores[rows].sum(0) for rows in sets])


def linear_datamodeling_score(scores: np.ndarray, sets: list[np.ndarray], margins: np.ndarray) -> float:
    """LDS (arXiv 2303.14186): Spearman over subsets of summed scores of the kept rows and margins, mean over rows."""
    return float(spearman_columns(-of_sets(scores, sets), margins.mean(1)).mean())


def reliability(margins: np.ndarray) -> float:
    """
    The LDS that the margins of all retrainings `(sets, r, m)` would have if they were predicted perfectly.

    One retraining against another correlates by c; the mean of r of them with its own expectation by
    `sqrt(r c / (1 + (r - 1) c))` (Spearman and Brown).
    """
    r = margins.shape[1]
    pairs = [spearman_columns(margins[:, i], margins[:, j]).mean() for i in range(r) for j in range(i)]
    c = float(np.mean(pairs))
    return float(np.sqrt(max(0.0, r * c / (1 + (r - 1) * c))))


def bootstrap_lds(
    scores: dict[str, np.ndarray], sets: list[np.ndarray], margins: np.ndarray, draws: int = 200, seed: int = 0
) -> dict[str, np.ndarray]:
    """LDS of each method over resampled subsets, the same ones for all: `(draws,)`."""
    sums = {name: -of_sets(matrix, sets) for name, matrix in scores.items()}
    mean = margins.mean(1)
    generator = np.random.default_rng(seed)
    picks = [generator.integers(0, len(sets), len(sets)) for _ in range(draws)]
    return {name: np.array([spearman_columns(s[p], mean[p]).mean() for p in picks]) for name, s in sums.items()}
