"""By the area under the margin."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.hardness import keep_hardest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("aum", paper="https://hf.co/papers/2001.10528")
def aum(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows of the lowest margin: Pleiss et al., [arXiv 2001.10528](https://hf.co/papers/2001.10528).
    """
    return keep_hardest(problem, dropped, config, "aum")
