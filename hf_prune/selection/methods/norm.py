"""By the length of the influence vector."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, drop_largest, ranks
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("norm")
def norm(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """Keeps the rows of the largest influence norm (within each class, where classes are balanced)."""
    return Choice(drop_largest(problem, dropped, -ranks(problem.norm, config.seed)))
