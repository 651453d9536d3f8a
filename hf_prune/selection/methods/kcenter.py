"""Greedy k-center."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.distances import one_by_one
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("kcenter", reads=("features",), paper="https://hf.co/papers/1708.00489")
def kcenter(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps, one by one, the row of a class that is farthest from all kept ones: greedy k-center.

    Sener and Savarese, [arXiv 1708.00489](https://hf.co/papers/1708.00489). The first row is the one nearest to the
    mean.
    """
    return one_by_one(problem, dropped, config, _farthest)


def _farthest(vectors: np.ndarray, count: int) -> Iterator[int]:
    row = int(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).argmin())
    nearest = np.full(len(vectors), np.inf)
    for _ in range(count):
        yield row
        nearest = np.minimum(nearest, ((vectors - vectors[row]) ** 2).sum(axis=1))
        nearest[row] = -np.inf  # equal rows are at distance 0 of a kept one, not kept themselves
        row = int(nearest.argmax())
