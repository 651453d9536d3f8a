"""All that a new selection method takes: this file would stand in hf_prune/selection/methods/."""

from __future__ import annotations

from hf_prune.selection import SelectionConfig
from hf_prune.selection.choice import Choice, drop_largest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem

NAME = "toy"


@method(NAME)
def toy(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """Drops the rows of the largest influence, class by class."""
    return Choice(drop_largest(problem, dropped, problem.norm))
