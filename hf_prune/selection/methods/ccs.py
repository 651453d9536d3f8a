"""Coverage-centric selection."""

from __future__ import annotations

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, ranks
from hf_prune.selection.hardness import HARDER_IS
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem

STRATA = 50
"""Strata of the score, as published."""
CUT_AT = ((0.3, 0.5, 0.7, 0.8, 0.9), (0.0, 0.0, 0.1, 0.1, 0.3))
"""Rates, and the hardest share that is cut at each: the published values for CIFAR-10."""


@method("ccs", paper="https://hf.co/papers/2210.15809")
def ccs(problem: Problem, dropped: int, config: SelectionConfig, *, cut: float | None = None) -> Choice:
    """
    Coverage-centric selection: cuts the hardest rows, then draws evenly from strata of the score.

    Zheng et al., [arXiv 2210.15809](https://hf.co/papers/2210.15809), algorithm 1: 50 strata of equal width; where one
    has fewer rows than its share of the budget, the others share what is left. Classes are left to chance, as there.

    Args:
        problem (`Problem`): The dataset, with a column `aum` or else `el2n`.
        dropped (`int`): Rows to drop.
        config (`SelectionConfig`): The seed.
        cut (`float`, *optional*): Hardest share that goes first; by default the published ones for CIFAR-10.
    """
    column = "el2n" if "aum" not in problem.dataset.column_names and "el2n" in problem.dataset.column_names else "aum"
    score = HARDER_IS[column] * problem.column(column)
    share = float(np.interp(dropped / problem.n, *CUT_AT)) if cut is None else cut
    mask = ranks(score, config.seed) >= problem.n - min(dropped, round(share * problem.n))
    left = np.flatnonzero(~mask)
    edges = np.linspace(score[left].min(), score[left].max(), STRATA + 1)
    strata = np.digitize(score[left], edges[1:-1])
    shuffled = np.random.default_rng(config.seed).permutation(len(left))
    keep = evenly(np.bincount(strata, minlength=STRATA), problem.n - dropped)
    for stratum, kept in enumerate(keep):
        mask[left[shuffled[strata[shuffled] == stratum][kept:]]] = True
    note = f"CCS by {column}: the hardest {share:.0%} were cut, the rest drawn from {STRATA} strata of the score."
    return Choice(mask, (note,), {"balance": False})


def evenly(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Rows to keep of each stratum, `(strata,)`: equally many, and all of those that have not as many."""
    kept = np.zeros(len(sizes), dtype=np.int64)
    order = np.argsort(sizes, kind="stable")
    for done, stratum in enumerate(order):
        kept[stratum] = min(sizes[stratum], budget // (len(sizes) - done))
        budget -= kept[stratum]
    return kept
