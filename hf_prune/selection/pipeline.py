"""From a problem to a [`Selection`]: size, what goes first, method, certificate."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.config import SelectionConfig
from hf_prune._core.doubts import DOUBTED
from hf_prune._core.scoring import Claim
from hf_prune.selection import harm, size
from hf_prune.selection.certificate import certify
from hf_prune.selection.choice import Choice
from hf_prune.selection.identity import RowIdentity
from hf_prune.selection.method import Method
from hf_prune.selection.problem import Problem
from hf_prune.selection.selection import Selection

logger = logging.getLogger(__name__)

WARNED_ABOVE = 3.0
"""Standard deviations of random subsets' predicted loss above which a selection is warned of."""


def run(
    problem: Problem,
    config: SelectionConfig,
    method: Method,
    claim: Claim,
    gone: np.ndarray | None = None,
) -> Selection:
    """
    Chooses the rows that go, and certifies the choice.

    Args:
        problem (`Problem`): The dataset.
        config (`SelectionConfig`): What was asked for.
        method (`Method`): The method that it names.
        claim (`Claim`): How the influence columns were made, and what has to be said with that.
        gone (`np.ndarray`, *optional*): Rows that are to be among the dropped ones, bool of shape `(n,)`.
    """
    harmful = harm.find(problem) if config.harmful == "drop" else None
    start = np.zeros(problem.n, dtype=bool) if gone is None else gone

    def solve(dropped: int) -> Choice:
        first = start if harmful is None else harmful.first(start, dropped)
        if not first.any():
            return method.choose(problem, dropped, config)
        # the method does not see what was dropped first: the rows that are left are balanced among themselves
        left = np.flatnonzero(~first)
        choice = method.choose(problem.take(left), dropped - int(first.sum()), config)
        mask = first.copy()
        mask[left] = choice.dropped
        return replace(choice, dropped=mask)

    notes: tuple[str, ...] = ()
    if config.epsilon is None:
        choice = solve(problem.n - config.kept_rows(problem.n))
    else:
        most = problem.n - 1 if problem.classes is None else problem.classes.most_dropped()
        choice, notes = size.drop_within(problem, config.epsilon, solve, most)
    if problem.classes is not None and choice.resolved.get("balance") is not False:
        raised = problem.classes.raised(problem.n - int(choice.dropped.sum()))
        if raised:
            named = ", ".join(map(repr, raised[:5])) + (f" and {len(raised) - 5} more" if len(raised) > 5 else "")
            notes += (f"A class too small for its share keeps one row all the same: {named}.",)
    certificate = certify(
        problem,
        choice.dropped,
        method=config.method,
        seed=config.seed,
        epsilon=config.epsilon,
        scoring=claim.record,
        notes=choice.notes + claim.words + notes,
        harm=None if harmful is None else harmful.report(choice.dropped),
    )
    resolved = {"kept": certificate.kept, "balance": problem.classes.column if problem.classes else False}
    return Selection(
        keep_indices=np.flatnonzero(~choice.dropped),
        drop_indices=np.flatnonzero(choice.dropped),
        certificate=certificate,
        config=config,
        resolved=resolved | choice.resolved,
        scoring=claim.record,
        identity=_identity(problem, config.column),
    )


def _identity(problem: Problem, column: str) -> RowIdentity:
    scores = set(InfluenceColumns(column))
    return RowIdentity([name for name in problem.dataset.column_names if name not in scores], problem.dataset)


def warn_of_doubts(selection: Selection) -> Selection:
    """Warns of a selection by scores that were noticed to be less faithful, whenever that was."""
    for note in selection.certificate.notes:
        if note.startswith(DOUBTED):
            logger.warning(note)
    return selection


def warn_of_loss(selection: Selection) -> Selection:
    """
    Warns of a selection that is predicted to harm the held-out rows clearly more than random rows would.

    Where the held-out rows are of another kind than the pool, representing the pool does not help them.
    """
    certificate = selection.certificate
    change, random = certificate.predicted_eval_loss_change, certificate.random_eval_loss_change
    if change is not None and random is not None and change > random.mean + WARNED_ABOVE * random.sd:
        logger.warning(
            f"These rows are predicted to change the held-out loss by {change:+.3g}, random rows by {random}: if the "
            "held-out rows are a task of their own, pass method='target'; otherwise pass probe=."
        )
    return selection
