"""After TDDS: by how much training moved a row's prediction."""

from __future__ import annotations

from dataclasses import replace

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.hardness import keep_hardest
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("tdds", paper="https://hf.co/papers/2311.13613")
def tdds(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows whose predictions moved most, after TDDS, Zhang et al., [arXiv 2311.13613](https://hf.co/papers/2311.13613).

    TDDS takes the variance, in windows of epochs, of each row's contribution to the change of the model; here it is
    the column `variability`, the standard deviation over epochs of the probability of the row's own class.
    """
    note = (
        "TDDS-style: the variability of the own class's probability over epochs stands in for its windowed variance."
    )
    return replace(keep_hardest(problem, dropped, config, "variability"), notes=(note,))
