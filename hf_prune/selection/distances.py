"""What the methods share that measure distances between rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from datasets.utils import tqdm

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, class_codes, drop_counts
from hf_prune.selection.problem import Problem

SLOW = 2_000
"""Rows to keep above which choosing one by one may take more than two seconds, so that a progress bar is shown."""


def groups(problem: Problem, config: SelectionConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Class by class (all rows as one where nothing is balanced): the rows, and their vectors as float64."""
    table = None if config.features is None else problem.table(config.features)
    codes = class_codes(problem)
    for code in range(codes.max() + 1):
        rows = np.flatnonzero(codes == code)
        # the solver's directions alone: the audit has to stay one
        yield rows, problem.solver_vectors(rows) if table is None else table.take(rows).astype(np.float64)


def one_by_one(
    problem: Problem, dropped: int, config: SelectionConfig, pick: Callable[[np.ndarray, int], Iterator[int]]
) -> Choice:
    """Keeps the rows that `pick(vectors, count)` names, class by class."""
    mask = np.ones(problem.n, dtype=bool)
    counts = np.bincount(class_codes(problem)) - drop_counts(problem, dropped)
    kept = problem.n - dropped
    with tqdm(total=kept, desc="Choosing rows", unit="row", disable=kept < SLOW or None) as bar:
        for (rows, vectors), count in zip(groups(problem, config), counts, strict=True):
            for row in pick(vectors, int(count)):
                mask[rows[row]] = False
                bar.update()
    return Choice(mask, notes(config))


def herd(vectors: np.ndarray, count: int) -> Iterator[int]:
    """Rows of `vectors` `(n, d)`, one by one: each brings the mean of those taken nearest to the mean of all."""
    lengths = (vectors**2).sum(axis=1)
    mean, total = vectors.sum(axis=0, dtype=np.float64) / max(len(vectors), 1), np.zeros(vectors.shape[1])
    for size in range(1, count + 1):
        # |size mean - total - v|^2 without what is the same for all v
        row = int((lengths - 2 * (vectors @ (size * mean - total).astype(vectors.dtype))).argmin())
        total += vectors[row]
        lengths[row] = np.inf
        yield row


def notes(config: SelectionConfig) -> tuple[str, ...]:
    """What to know where distances are not between features."""
    if config.features is not None:
        return ()
    return ("No features column was named, so distances are between influence vectors instead of features.",)
