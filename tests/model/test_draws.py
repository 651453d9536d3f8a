"""The draws of a sampler are told from the counts of its visits."""

from __future__ import annotations

import numpy as np
import pytest

from hf_prune.model.draws import draw_shares


def epochs(n: int, whole: int, part: float, rng: np.random.Generator) -> np.ndarray:
    counts = np.full(n, whole)
    counts[rng.permutation(n)[: round(part * n)]] += 1  # of an epoch that was cut
    return counts


@pytest.mark.parametrize("n", [50, 2000])
@pytest.mark.parametrize("mean", [1, 3, 10])
def test_an_equal_chance_is_told_from_the_noise_of_its_counts(n: int, mean: int):
    rng = np.random.default_rng(n + mean)
    for counts in (
        epochs(n, mean, 0.4, rng),
        (np.arange(n) < n // 3).astype(int),  # a third of an epoch
        np.bincount(rng.integers(0, n, mean * n), minlength=n),
    ):
        np.testing.assert_array_equal(draw_shares(counts), 1 / len(counts))


@pytest.mark.parametrize("mean", [4, 10])
def test_unequal_draws_have_the_shares_that_were_counted(mean: int):
    n, rng = 400, np.random.default_rng(mean)
    left_out = np.full(n, mean)
    left_out[: n // 10] = 0
    oversampled = np.full(n, mean)
    oversampled[: n // 20] *= 5
    thrice = np.ones(n, dtype=int)
    thrice[: n // 10] = 3
    weights = np.r_[np.full(n // 10, 8.0), np.ones(n - n // 10)]
    weighted = np.bincount(rng.choice(n, mean * n, p=weights / weights.sum()), minlength=n)
    for counts in (left_out, oversampled, thrice, weighted):
        np.testing.assert_allclose(draw_shares(counts), counts / counts.sum())
