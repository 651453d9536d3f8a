"""How many rows to drop: the number that was asked for, or the largest whose predicted shift stays within epsilon."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets.utils import tqdm

from hf_prune.selection.buckets import SLOW
from hf_prune.selection.choice import Choice
from hf_prune.selection.problem import Problem

STEPS = 1024
"""The size is found to n / 1024 rows (exactly below 1024 rows): one solution more for each doubling."""


def drop_within(
    problem: Problem, epsilon: float, solve: Callable[[int], Choice], most: int
) -> tuple[Choice, tuple[str, ...]]:
    """
    The largest subset to drop whose predicted shift, measured on the rounded rows themselves, is at most `epsilon`.

    The shift grows with the number of dropped rows up to the noise of the rounding, so a bisection finds the border:
    the result is always within epsilon, and some size within `n / 1024` rows above it is not.

    Args:
        problem (`Problem`): The influence columns.
        epsilon (`float`): Bound on `Problem.shift`, in units of the influence column.
        solve (`Callable`): The method, from the number of rows to drop to a choice.
        most (`int`): Rows that may go at most.

    Returns:
        `tuple[Choice, tuple[str, ...]]`: The choice, and notes on where the search ended.
    """
    resolution = max(1, problem.n // STEPS)
    best, low, high = Choice(np.zeros(problem.n, dtype=bool)), 0, most + 1
    with tqdm(desc="Searching the size", unit="subset", disable=problem.n < SLOW or None) as bar:
        trial = most  # a generous epsilon is answered at once
        while low < trial < high:
            choice = solve(trial)
            bar.update()
            if problem.shift(choice.dropped) <= epsilon:
                best, low = choice, trial
            else:
                high = trial
            trial = (low + high) // 2 if high - low > resolution else low
    if low == most:
        return best, ("Keeping a row of every class ended the search, not epsilon.",)
    if low == 0:
        return best, (f"No smaller subset was found within epsilon={epsilon:g}, so all rows are kept.",)
    return best, ()
