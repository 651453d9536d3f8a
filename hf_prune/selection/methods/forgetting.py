"""By forgetting events."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.hardness import keep_hardest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("forgetting", paper="https://hf.co/papers/1812.05159")
def forgetting(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows that were forgotten most often: Toneva et al., [arXiv 1812.05159](https://hf.co/papers/1812.05159).
    """
    return keep_hardest(problem, dropped, config, "forgetting")
