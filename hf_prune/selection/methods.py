"""The selection methods: each is one function from a problem and a size to the rows that go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import buckets, difficulty
from .options import Options
from .problem import Problem
from .rounding import round_to_counts


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


def drop_counts(problem: Problem, dropped: int) -> np.ndarray:
    """Rows to drop of each class, `(classes,)`, or `(1,)` where nothing is balanced."""
    if problem.classes is None:
        return np.array([dropped])
    return problem.classes.counts() - problem.classes.kept_counts(problem.n - dropped)


def influence(problem: Problem, dropped: int, options: Options) -> Choice:
    """The linear program: the subset whose predicted shift is least, among them the one that `difficulty` prefers."""
    rng = np.random.default_rng(options.seed)
    preference = difficulty.choose(options.difficulty, problem.norm, dropped / problem.n)
    cost = difficulty.cost(preference, problem.norm, rng)
    number = buckets.count(options.buckets, problem)
    mask, inexact = buckets.drop_rows(problem, cost, drop_counts(problem, dropped), number, rng)
    notes = [f"Difficulty {options.difficulty}: {preference.reason}."]
    if inexact:
        notes.append(
            f"The balance could not be met exactly in {inexact} of {number} buckets; the nearest point was taken."
        )
    return Choice(mask, tuple(notes), {"difficulty": preference.to_dict(), "buckets": number})


def random(problem: Problem, dropped: int, options: Options) -> Choice:
    """A random subset; classes are left to chance."""
    mask = np.zeros(problem.n, dtype=bool)
    mask[np.random.default_rng(options.seed).permutation(problem.n)[:dropped]] = True
    return Choice(mask, resolved={"balance": False})


def stratified(problem: Problem, dropped: int, options: Options) -> Choice:
    """A random subset that keeps the class shares."""
    if problem.classes is None:
        raise ValueError(
            "method='stratified' needs classes, and no label column was found: name one with balance='column', or "
            "pass method='random'."
        )
    return _largest(problem, dropped, np.random.default_rng(options.seed).random(problem.n))


def norm(problem: Problem, dropped: int, options: Options) -> Choice:
    """Keeps the rows of the largest influence norm (within each class, where classes are balanced)."""
    ties = np.random.default_rng(options.seed).permutation(problem.n)
    order = np.lexsort((ties, problem.norm))
    rank = np.empty(problem.n)
    rank[order] = np.arange(problem.n)
    return _largest(problem, dropped, -rank)


def _largest(problem: Problem, dropped: int, score: np.ndarray) -> Choice:
    """Drops the rows of the largest score, `(n,)`, class by class."""
    codes = problem.classes.codes if problem.classes else np.zeros(problem.n, dtype=np.int64)
    return Choice(round_to_counts(np.zeros(problem.n), -score, codes, drop_counts(problem, dropped)))


METHODS: dict[str, Callable[[Problem, int, Options], Choice]] = {
    "influence": influence,
    "random": random,
    "stratified": stratified,
    "norm": norm,
}


def find(name: str) -> Callable[[Problem, int, Options], Choice]:
    """The method of that name; raises a `ValueError` that lists them if there is none."""
    if name not in METHODS:
        raise ValueError(f"method={name!r} is not known: pass one of {sorted(METHODS)}.")
    return METHODS[name]
