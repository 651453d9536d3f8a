"""Rows that are predicted to harm the model, such as wrongly labelled ones: found, reported, and dropped first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_prune._core.reading import Count
from hf_prune.selection.classes import read_classes
from hf_prune.selection.problem import Problem

RULE = (
    "the lowest margins (aum), of as many rows as were believed of another class over the recorded epochs (aum < 0) "
    "while either removing them is predicted to lower the held-out loss or their own loss is worse than a guess's "
    "(loss > ln classes)"
)
"""Margins order wrong labels best, but fall below 0 for hard rows too; the other two tell how many are wrong."""


@dataclass(frozen=True)
class Harm:
    """
    What was found and dropped as harmful.

    Args:
        rule (`str`): When a row counts as harmful, in words.
        found (`int`): Rows that the rule names.
        dropped (`tuple[int, ...]`): Ids of those that were dropped for it, sorted: all of them, or as many as go.
    """

    rule: str
    found: Count
    dropped: tuple[Count, ...]

    def explain(self) -> str:
        """One plain line."""
        shown = ", ".join(map(str, self.dropped[:10])) + (", ..." if len(self.dropped) > 10 else "")
        ids = f" (ids {shown})" if self.dropped else ""
        return f"Harmful rows: {self.found:,} found, {len(self.dropped):,} dropped first{ids}. Rule: {self.rule}."


@dataclass(frozen=True)
class HarmfulRows:
    """
    The rows that the rule names.

    Args:
        order (`np.ndarray`): All rows, the most harmful first, int64 of shape `(n,)`.
        found (`int`): How many of them, from the first on, the rule names.
    """

    order: np.ndarray
    found: int

    def first(self, gone: np.ndarray, dropped: int) -> np.ndarray:
        """`gone`, bool of shape `(n,)`, and of the harmful rows the worst, until `dropped` rows are gone."""
        mask = gone.copy()
        named = self.order[: self.found]
        waiting = named[~gone[named]]
        mask[waiting[: max(0, dropped - int(gone.sum()))]] = True
        return mask

    def report(self, dropped: np.ndarray) -> Harm:
        """What the certificate says of it, for the mask `dropped` of shape `(n,)`."""
        named = self.order[: self.found]
        return Harm(RULE, self.found, tuple(int(row) for row in np.sort(named[dropped[named]])))


def find(problem: Problem) -> HarmfulRows:
    """
    Finds the harmful rows: those of [`RULE`], by rising `aum`.

    Without predictions for held-out rows, or without classes, that part of the rule names no row; without both, `aum`
    decides.

    Raises:
        `ValueError`: If the dataset has no column `aum` or `loss`.
    """
    margin = problem.column("aum")
    labels = problem.classes or read_classes(problem.dataset, None)
    reasons = []
    if problem.eval_loss is not None:
        reasons.append(problem.eval_loss < 0)
    if labels is not None:
        reasons.append(problem.column("loss") > np.log(len(labels.names)))
    bad = (margin < 0) & (np.logical_or.reduce(reasons) if reasons else True)
    spared = np.zeros(problem.n, dtype=bool)
    if problem.classes is not None:
        # all rows of a class are not errors of labelling: the model has not learned that class
        spared = (problem.classes.counts(bad) == problem.classes.counts())[problem.classes.codes]
    return HarmfulRows(np.lexsort((margin, spared)), int((bad & ~spared).sum()))
