"""For a target task, by gradients."""

from __future__ import annotations

from hf_prune._core.columns import LESS
from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, keep_largest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("less", paper="https://hf.co/papers/2402.04333")
def less(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows whose gradients point most along the target task's; classes are left to chance.

    LESS, Xia et al., [arXiv 2402.04333](https://hf.co/papers/2402.04333), with one target task.
    """
    fix = "make it with `add_scores(dataset, trajectory, model=model, eval_dataset=rows of the target task)`"
    return keep_largest(problem.column(LESS, fix), dropped, config.seed)
