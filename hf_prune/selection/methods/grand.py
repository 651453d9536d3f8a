"""By the norm of the gradient."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.hardness import keep_hardest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("grand", paper="https://hf.co/papers/2107.07075")
def grand(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows of the largest GraNd: Paul et al., [arXiv 2107.07075](https://hf.co/papers/2107.07075).
    """
    return keep_hardest(problem, dropped, config, "grand")
