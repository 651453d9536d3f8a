"""A random subset within classes."""

from __future__ import annotations

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, drop_largest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("stratified")
def stratified(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """A random subset that keeps the class shares."""
    if problem.classes is None:
        raise ValueError(
            "method='stratified' needs classes, and no label column was found: name one with balance='column', or "
            "pass method='random'."
        )
    return Choice(drop_largest(problem, dropped, np.random.default_rng(config.seed).random(problem.n)))
