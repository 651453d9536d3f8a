"""For a target task, by hidden states."""

from __future__ import annotations

import numpy as np

from hf_prune._core.columns import RDS
from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("rds", paper="https://hf.co/papers/2503.01807")
def rds(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows nearest to the target task's: its rows take turns, each takes its nearest row that is left.

    RDS+, Ivison et al., [arXiv 2503.01807](https://hf.co/papers/2503.01807). Classes are left to chance.
    """
    if RDS not in problem.dataset.column_names:
        raise ValueError(
            f"method='rds' needs the column {RDS!r}: make it with `add_scores(dataset, trajectory, model=model, "
            "eval_dataset=rows of the target task)`."
        )
    similar = problem.table(RDS).take(np.arange(problem.n))
    mask = np.ones(problem.n, dtype=bool)
    mask[take_turns(similar, problem.n - dropped, config.seed)] = False
    return Choice(mask, resolved={"balance": False})


def take_turns(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """
    `count` rows: the columns of `values` `(n, g)` take turns, each takes its largest row that nobody has taken.

    Rows of equal value come in an order drawn by the seed.
    """
    shuffled = np.random.default_rng(seed).permutation(len(values))
    orders = [shuffled[np.argsort(-column[shuffled], kind="stable")] for column in values.T]
    left, places = np.ones(len(values), dtype=bool), [0] * len(orders)
    taken = np.empty(count, dtype=np.int64)
    for turn in range(count):
        own = turn % len(orders)
        while not left[orders[own][places[own]]]:
            places[own] += 1
        taken[turn] = orders[own][places[own]]
        left[taken[turn]] = False
    return taken
