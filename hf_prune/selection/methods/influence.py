"""The library's own method: by influence vectors and features."""

from __future__ import annotations

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection import buckets, difficulty
from hf_prune.selection.choice import Choice, class_codes, drop_counts
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem
from hf_prune.selection.representation import Representation


@method("influence", reads=("cost", "hard", "cut"))
def influence(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """Kept rows that represent all, or dropped rows that cancel out, as [`SelectionConfig`] says."""
    rng = np.random.default_rng(config.seed)
    counts, codes = drop_counts(problem, dropped), class_codes(problem)
    preference = difficulty.choose(config)
    if preference.kind == "represent":
        cost = difficulty.represent_cost(preference, problem.norm, codes, np.bincount(codes) - counts)
    elif preference.kind == "column":
        values = problem.column(str(config.cost), "name another column with `cost=`, or leave cost out")
        cost = difficulty.cost_of(values, rng)
    else:
        cost = difficulty.cost(preference, problem.norm, rng)
    number = buckets.count(config.buckets, problem)
    represent = Representation.of(problem) if preference.kind == "represent" else None
    mask, inexact = buckets.drop_rows(problem, cost, counts, number, rng, represent=represent)
    notes = [f"Choice: {preference.reason}."]
    if represent is not None and problem.features is None:
        notes.append("The dataset has no features column, so rows are represented by their influence alone.")
    if inexact:
        notes.append(
            f"The balance could not be met exactly in {inexact} of {number} buckets; the nearest point was taken."
        )
    return Choice(mask, tuple(notes), {"difficulty": preference.to_dict(), "buckets": number})
