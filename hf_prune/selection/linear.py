"""
The linear program of the selection (THEORY 3): fractional prune weights x in [0, 1]^n that minimise a linear cost
subject to `sum x_i v_i = target` over the solver directions and to a total for each class.

A vertex of these constraints has at most as many fractional entries as there are constraint rows, whatever n is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csc_matrix, csr_matrix, hstack, identity, vstack

SLACK_COST = 100.0
"""Cost of one unit (a root mean square row) of imbalance, far more than any row's cost, where no exact balance is."""
NO_DIRECTION = 1e-9
"""Directions weaker than this, relative to the strongest, are numerical zeros and make no constraint."""


@dataclass(frozen=True)
class Solution:
    """
    A vertex of the linear program.

    Args:
        weights (`np.ndarray`): Prune weight of each row, in [0, 1], of shape `(n,)`.
        reduced_cost (`np.ndarray`): What it costs to move a row's weight; 0 for fractional rows; `(n,)`.
        exact (`bool`): False where the balance could not be met and the nearest point was taken.
    """

    weights: np.ndarray
    reduced_cost: np.ndarray
    exact: bool


def solve(
    vectors: np.ndarray, cost: np.ndarray, codes: np.ndarray, totals: np.ndarray, target: np.ndarray
) -> Solution:
    """
    Solves the linear program with HiGHS.

    Args:
        vectors (`np.ndarray`): Centred influence, `(n, d)`.
        cost (`np.ndarray`): Cost of dropping each row, `(n,)`.
        codes (`np.ndarray`): Class of each row, `(n,)`.
        totals (`np.ndarray`): Weight to drop from each class, `(classes,)`.
        target (`np.ndarray`): What the weighted sum of the vectors has to be, `(d,)`.

    Raises:
        `RuntimeError`: If the solver fails even with slack, which finite input should not bring about.
    """
    n = len(cost)
    spread = np.sqrt((vectors**2).mean(axis=0))
    live = spread > NO_DIRECTION * max(spread.max(initial=0.0), np.finfo(float).tiny)
    # every direction in its own unit: HiGHS' tolerances are absolute
    balance = csr_matrix((vectors[:, live] / spread[live]).T)
    wanted = target[live] / spread[live]
    shares = csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(len(totals), n))
    limits = np.concatenate([wanted, totals])
    result = linprog(cost, A_eq=csc_matrix(vstack([balance, shares])), b_eq=limits, bounds=(0, 1), method="highs")
    if result.status == 0:
        return Solution(result.x, result.lower.marginals + result.upper.marginals, True)
    # no exact balance (or HiGHS found none): the nearest point, each unit of imbalance at a price
    d = len(wanted)
    slack = vstack([hstack([identity(d), -identity(d)]), csr_matrix((len(totals), 2 * d))])
    columns = csc_matrix(hstack([vstack([balance, shares]), slack]))
    bounds = [(0, 1)] * n + [(0, None)] * (2 * d)
    priced = np.concatenate([cost, np.full(2 * d, SLACK_COST)])
    result = linprog(priced, A_eq=columns, b_eq=limits, bounds=bounds, method="highs")
    if result.status != 0:
        raise RuntimeError(
            f"The linear program over {n} rows was not solved ({result.message.strip()}): pass difficulty=None, or "
            "method='stratified' for a subset that needs no solver."
        )
    return Solution(result.x[:n], (result.lower.marginals + result.upper.marginals)[:n], False)
