"""By the loss at the last visit."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.hardness import keep_hardest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("loss")
def loss(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows of the largest loss.
    """
    return keep_hardest(problem, dropped, config, "loss")
