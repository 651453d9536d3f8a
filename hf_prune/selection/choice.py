"""What a method returns, and what all methods share: counts of each class, and dropping by a score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_prune.selection.problem import Problem
from hf_prune.selection.rounding import round_to_counts


@dataclass(frozen=True)
class Choice:
    """
    What a method chose.

    Args:
        dropped (`np.ndarray`): Mask of the rows that go, bool of shape `(n,)`.
        notes (`tuple[str, ...]`): What the user should know about how it was chosen, one sentence each.
        resolved (`dict`): Values of the arguments that were left to the method, such as the number of buckets.
    """

    dropped: np.ndarray
    notes: tuple[str, ...] = ()
    resolved: dict[str, Any] = field(default_factory=dict)


def class_codes(problem: Problem) -> np.ndarray:
    """The class of each row, `(n,)`; 0 for all where nothing is balanced."""
    return problem.classes.codes if problem.classes else np.zeros(problem.n, dtype=np.int64)


def drop_counts(problem: Problem, dropped: int) -> np.ndarray:
    """Rows to drop of each class, `(classes,)`, or `(1,)` where nothing is balanced."""
    if problem.classes is None:
        return np.array([dropped])
    return problem.classes.counts() - problem.classes.kept_counts(problem.n - dropped)


def drop_largest(problem: Problem, dropped: int, score: np.ndarray) -> np.ndarray:
    """Mask of the rows of the largest score, `(n,)`, class by class."""
    return round_to_counts(np.zeros(problem.n), -score, class_codes(problem), drop_counts(problem, dropped))


def ranks(score: np.ndarray, seed: int) -> np.ndarray:
    """Position of each row when sorted by score, `(n,)`; rows of equal score in an order drawn by the seed."""
    order = np.lexsort((np.random.default_rng(seed).permutation(len(score)), score))
    result = np.empty(len(score))
    result[order] = np.arange(len(score))
    return result


def keep_largest(score: np.ndarray, dropped: int, seed: int) -> Choice:
    """Keeps the rows of the largest score `(n,)`, whatever their classes; ties are broken by the seed."""
    return Choice(ranks(score, seed) < dropped, resolved={"balance": False})
