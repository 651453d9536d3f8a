"""Herding."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.distances import herd, one_by_one
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("herding", reads=("features",), paper="https://hf.co/papers/1611.07725")
def herding(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps, one by one, the row that brings the mean of the kept rows of a class nearest to the mean of the class.

    Welling, ICML 2009, as used for exemplars by iCaRL, [arXiv 1611.07725](https://hf.co/papers/1611.07725).
    """
    return one_by_one(problem, dropped, config, herd)
