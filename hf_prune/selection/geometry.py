"""Published baselines that measure distances between rows: moderate, herding and k-center."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from datasets.utils import tqdm

from .choice import Choice, class_codes, drop_counts, drop_largest
from .options import Options
from .problem import Problem

SLOW = 2_000
"""Rows to keep above which choosing one by one may take more than two seconds, so that a progress bar is shown."""


def moderate(problem: Problem, dropped: int, options: Options) -> Choice:
    """
    Keeps the rows whose distance to the centre of their class is nearest to the median of these distances.

    Moderate coreset, Xia et al., ICLR 2023, [OpenReview 7D5EECbOaf9](https://openreview.net/forum?id=7D5EECbOaf9). The
    centre is the mean of the class, and the median is taken in each class.
    """
    far = np.empty(problem.n)
    for rows, vectors in _groups(problem, options):
        distances = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
        far[rows] = np.abs(distances - np.median(distances))
    return Choice(drop_largest(problem, dropped, far), _notes(options))


def herding(problem: Problem, dropped: int, options: Options) -> Choice:
    """
    Keeps, one by one, the row that brings the mean of the kept rows of a class nearest to the mean of the class.

    Welling, ICML 2009, as used for exemplars by iCaRL, [arXiv 1611.07725](https://hf.co/papers/1611.07725).
    """
    return _one_by_one(problem, dropped, options, herd)


def kcenter(problem: Problem, dropped: int, options: Options) -> Choice:
    """
    Keeps, one by one, the row of a class that is farthest from all kept ones: greedy k-center.

    Sener and Savarese, [arXiv 1708.00489](https://hf.co/papers/1708.00489). The first row is the one nearest to the
    mean.
    """
    return _one_by_one(problem, dropped, options, _spread)


def _groups(problem: Problem, options: Options) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Class by class (all rows as one where nothing is balanced): the rows, and their vectors as float64."""
    table = None if options.features is None else problem.table(options.features)
    codes = class_codes(problem)
    for code in range(codes.max() + 1):
        rows = np.flatnonzero(codes == code)
        # the solver's directions alone: the audit has to stay one
        yield rows, problem.solver_vectors(rows) if table is None else table.take(rows).astype(np.float64)


def _one_by_one(
    problem: Problem, dropped: int, options: Options, pick: Callable[[np.ndarray, int], Iterator[int]]
) -> Choice:
    mask = np.ones(problem.n, dtype=bool)
    counts = np.bincount(class_codes(problem)) - drop_counts(problem, dropped)
    kept = problem.n - dropped
    with tqdm(total=kept, desc="Choosing rows", unit="row", disable=kept < SLOW or None) as bar:
        for (rows, vectors), count in zip(_groups(problem, options), counts, strict=True):
            for row in pick(vectors, int(count)):
                mask[rows[row]] = False
                bar.update()
    return Choice(mask, _notes(options))


def herd(vectors: np.ndarray, count: int) -> Iterator[int]:
    """Rows of `vectors` `(n, d)`, one by one: each brings the mean of those taken nearest to the mean of all."""
    lengths = (vectors**2).sum(axis=1)
    mean, total = vectors.mean(axis=0), np.zeros(vectors.shape[1])
    for size in range(1, count + 1):
        # |size mean - total - v|^2 without what is the same for all v
        row = int((lengths - 2 * vectors @ (size * mean - total)).argmin())
        total += vectors[row]
        lengths[row] = np.inf
        yield row


def _spread(vectors: np.ndarray, count: int) -> Iterator[int]:
    row = int(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).argmin())
    nearest = np.full(len(vectors), np.inf)
    for _ in range(count):
        yield row
        nearest = np.minimum(nearest, ((vectors - vectors[row]) ** 2).sum(axis=1))
        nearest[row] = -np.inf  # equal rows are at distance 0 of a kept one, not kept themselves
        row = int(nearest.argmax())


def _notes(options: Options) -> tuple[str, ...]:
    if options.features is not None:
        return ()
    return ("No features column was named, so distances are between influence vectors instead of features.",)
