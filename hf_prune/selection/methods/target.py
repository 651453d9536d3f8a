"""For a task that the held-out rows stand for."""

from __future__ import annotations

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, ranks
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("target")
def target(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows whose removal is predicted to raise the held-out loss most; classes are left to chance.

    For a pool of many kinds of rows, scored with rows of one task as `eval_dataset`: those that serve the task stay.
    """
    if problem.eval_loss is None:
        raise ValueError(
            "method='target' needs the predicted change of the held-out loss: score with `add_influence(..., "
            "eval_dataset=rows of the target task)`."
        )
    mask = np.zeros(problem.n, dtype=bool)
    mask[ranks(problem.eval_loss, config.seed) < dropped] = True
    return Choice(mask, resolved={"balance": False})
