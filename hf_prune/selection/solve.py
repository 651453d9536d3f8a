"""From a problem and its options to a [`Selection`]: size, what goes first, method, certificate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import harm, methods, size
from .certificate import certify
from .choice import Choice
from .options import Options
from .problem import Problem
from .selection import Selection


def selection(
    problem: Problem, options: Options, scoring: dict[str, Any] | None, gone: np.ndarray | None = None
) -> Selection:
    """
    Chooses the rows that go, and certifies the choice.

    Args:
        problem (`Problem`): The dataset.
        options (`Options`): What was asked for.
        scoring (`dict`, *optional*): How the influence columns were made.
        gone (`np.ndarray`, *optional*): Rows that are to be among the dropped ones, bool of shape `(n,)`.
    """
    method = methods.find(options.method)
    harmful = harm.find(problem) if options.harmful == "drop" else None
    start = np.zeros(problem.n, dtype=bool) if gone is None else gone

    def solve(dropped: int) -> Choice:
        first = start if harmful is None else harmful.first(start, dropped)
        if not first.any():
            return method(problem, dropped, options)
        # what went first was not there for the method: the rows that are left are balanced among themselves
        left = np.flatnonzero(~first)
        choice = method(problem.take(left), dropped - int(first.sum()), options)
        mask = first.copy()
        mask[left] = choice.dropped
        return replace(choice, dropped=mask)

    notes: tuple[str, ...] = ()
    if options.epsilon is None:
        choice = solve(problem.n - options.kept_rows(problem.n))
    else:
        most = problem.n - 1 if problem.classes is None else problem.classes.most_dropped()
        choice, notes = size.drop_within(problem, options.epsilon, solve, most)
    certificate = certify(
        problem,
        choice.dropped,
        method=options.method,
        seed=options.seed,
        epsilon=options.epsilon,
        scoring=scoring,
        notes=choice.notes + notes,
        harm=None if harmful is None else harmful.report(choice.dropped),
    )
    resolved = {"kept": certificate.kept, "balance": problem.classes.column if problem.classes else False}
    return Selection(
        keep_indices=np.flatnonzero(~choice.dropped),
        drop_indices=np.flatnonzero(choice.dropped),
        certificate=certificate,
        arguments=options.to_dict() | {"resolved": resolved | choice.resolved},
        scoring=scoring,
    )
