"""For a task that the held-out rows stand for."""

from __future__ import annotations

from dataclasses import replace

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, keep_largest
from hf_prune.selection.method import method
from hf_prune.selection.pooling import pooled
from hf_prune.selection.problem import Problem


@method("target")
def target(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows whose removal is predicted to raise the held-out loss most; classes are left to chance.

    For a pool of many kinds of rows, scored with rows of one task as `eval_dataset`: those that serve the task stay.
    The prediction for a single row is noisy, so it is pooled with those of rows of like features ([`pooled`]).
    """
    if problem.eval_loss is None:
        raise ValueError(
            "method='target' needs the predicted change of the held-out loss: score with `add_influence(..., "
            "eval_dataset=rows of the target task)`."
        )
    if problem.features is None:
        note = "The dataset has no features column, so the predicted effects of single rows are taken as they are."
        return replace(keep_largest(problem.eval_loss, dropped, config.seed), notes=(note,))
    found = pooled(problem.eval_loss, problem.features)
    note = f"The rows' features explain {found.share:.0%} of how their predicted effects on the held-out loss vary."
    return replace(keep_largest(found.values, dropped, config.seed), notes=(note,))
