"""By length."""

from __future__ import annotations

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, keep_largest
from hf_prune.selection.columns import read_lengths
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("length", paper="https://hf.co/papers/2402.04833")
def length(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows of the most tokens; classes are left to chance.

    Long is more for alignment, Zhao et al., [arXiv 2402.04833](https://hf.co/papers/2402.04833).
    """
    tokens = read_lengths(problem.dataset, "input_ids", "pass the tokenized rows, as the Trainer got them")
    return keep_largest(tokens if problem.rows is None else tokens[problem.rows], dropped, config.seed)
