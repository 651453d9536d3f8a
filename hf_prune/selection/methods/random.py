"""A random subset."""

from __future__ import annotations

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("random")
def random(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """A random subset; classes are left to chance."""
    mask = np.zeros(problem.n, dtype=bool)
    mask[np.random.default_rng(config.seed).permutation(problem.n)[:dropped]] = True
    return Choice(mask, resolved={"balance": False})
