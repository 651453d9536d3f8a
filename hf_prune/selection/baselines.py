"""Published baselines that rank rows by one score, read from the columns that `add_scores` makes."""

from __future__ import annotations

import numpy as np

from .choice import Choice, drop_largest, ranks
from .options import Options
from .problem import Problem

HARDER_IS = {"el2n": 1, "grand": 1, "forgetting": 1, "loss": 1, "aum": -1, "variability": 1}
"""Sign with which each column grows with how hard a row is."""
STRATA = 50
"""Strata of CCS, as published."""
CUT_AT = ((0.3, 0.5, 0.7, 0.8, 0.9), (0.0, 0.0, 0.1, 0.1, 0.3))
"""Rates, and the hardest share that CCS cuts at each: the published values for CIFAR-10."""


def random(problem: Problem, dropped: int, options: Options) -> Choice:
    """A random subset; classes are left to chance."""
    mask = np.zeros(problem.n, dtype=bool)
    mask[np.random.default_rng(options.seed).permutation(problem.n)[:dropped]] = True
    return Choice(mask, resolved={"balance": False})


def stratified(problem: Problem, dropped: int, options: Options) -> Choice:
    """A random subset that keeps the class shares."""
    if problem.classes is None:
        raise ValueError(
            "method='stratified' needs classes, and no label column was found: name one with balance='column', or "
            "pass method='random'."
        )
    return Choice(drop_largest(problem, dropped, np.random.default_rng(options.seed).random(problem.n)))


def norm(problem: Problem, dropped: int, options: Options) -> Choice:
    """Keeps the rows of the largest influence norm (within each class, where classes are balanced)."""
    return Choice(drop_largest(problem, dropped, -ranks(problem.norm, options.seed)))


def hardest(problem: Problem, dropped: int, options: Options, *, column: str) -> Choice:
    """
    Keeps the rows that are hardest by a score (within each class, where classes are balanced).

    EL2N and GraNd: Paul et al., [arXiv 2107.07075](https://hf.co/papers/2107.07075). Forgetting: Toneva et al.,
    [arXiv 1812.05159](https://hf.co/papers/1812.05159). Area under the margin: Pleiss et al.,
    [arXiv 2001.10528](https://hf.co/papers/2001.10528).
    """
    return Choice(drop_largest(problem, dropped, -ranks(HARDER_IS[column] * problem.column(column), options.seed)))


def tdds(problem: Problem, dropped: int, options: Options) -> Choice:
    """
    Keeps the rows whose training moved most, after TDDS, Zhang et al., [arXiv 2311.13613](https://hf.co/papers/2311.13613).

    TDDS asks for the variance, in windows of epochs, of each row's contribution to the change of the model; here it is
    the column `variability`, the standard deviation over epochs of the probability of the row's own class.
    """
    choice = hardest(problem, dropped, options, column="variability")
    note = (
        "TDDS-style: the variability of the own class's probability over epochs stands in for its windowed variance."
    )
    return Choice(choice.dropped, (note,))


def ccs(problem: Problem, dropped: int, options: Options, *, cut: float | None = None) -> Choice:
    """
    Coverage-centric selection: cuts the hardest rows, then draws evenly from strata of the score.

    Zheng et al., [arXiv 2210.15809](https://hf.co/papers/2210.15809), algorithm 1: 50 strata of equal width; where one
    has fewer rows than its share of the budget, the others share what is left. Classes are left to chance, as there.

    Args:
        problem (`Problem`): The dataset, with a column `aum` or else `el2n`.
        dropped (`int`): Rows to drop.
        options (`Options`): The seed.
        cut (`float`, *optional*): Hardest share that goes first; by default the published ones for CIFAR-10.
    """
    column = "el2n" if "aum" not in problem.dataset.column_names and "el2n" in problem.dataset.column_names else "aum"
    score = HARDER_IS[column] * problem.column(column)
    share = float(np.interp(dropped / problem.n, *CUT_AT)) if cut is None else cut
    mask = ranks(score, options.seed) >= problem.n - min(dropped, round(share * problem.n))
    left = np.flatnonzero(~mask)
    edges = np.linspace(score[left].min(), score[left].max(), STRATA + 1)
    strata = np.digitize(score[left], edges[1:-1])
    shuffled = np.random.default_rng(options.seed).permutation(len(left))
    keep = _evenly(np.bincount(strata, minlength=STRATA), problem.n - dropped)
    for stratum, kept in enumerate(keep):
        mask[left[shuffled[strata[shuffled] == stratum][kept:]]] = True
    note = f"CCS by {column}: the hardest {share:.0%} were cut, the rest drawn from {STRATA} strata of the score."
    return Choice(mask, (note,), {"balance": False})


def _evenly(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Rows to keep of each stratum, `(strata,)`: equally many, and all of those that have not as many."""
    kept = np.zeros(len(sizes), dtype=np.int64)
    order = np.argsort(sizes, kind="stable")
    for done, stratum in enumerate(order):
        kept[stratum] = min(sizes[stratum], budget // (len(sizes) - done))
        budget -= kept[stratum]
    return kept
