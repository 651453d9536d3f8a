"""Scores that say how hard a row is, from the columns that `add_scores` makes."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, drop_largest, ranks
from hf_prune.selection.problem import Problem

HARDER_IS = {"el2n": 1, "grand": 1, "forgetting": 1, "loss": 1, "aum": -1, "variability": 1}
"""Sign with which each column grows with how hard a row is."""


def keep_hardest(problem: Problem, dropped: int, config: SelectionConfig, column: str) -> Choice:
    """Keeps the rows that are hardest by a score (within each class, where classes are balanced)."""
    return Choice(drop_largest(problem, dropped, -ranks(HARDER_IS[column] * problem.column(column), config.seed)))
