"""The library's own method: by influence vectors."""

from __future__ import annotations

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection import buckets, difficulty
from hf_prune.selection.choice import Choice, class_codes, drop_counts
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("influence", reads=("cost",))
def influence(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """By influence vectors, what `difficulty` asks for: rows that represent all, or dropped rows that cancel out."""
    rng = np.random.default_rng(config.seed)
    counts, codes = drop_counts(problem, dropped), class_codes(problem)
    if config.cost is None:
        within = config.epsilon is not None
        rate = dropped / problem.n
        preference = difficulty.choose(config.difficulty, problem.norm, problem.eval_loss, rate, within)
    else:
        preference = difficulty.Preference("column", f"rows of large {config.cost!r} were asked for")
    if preference.kind == "cover":
        cost = difficulty.cover_cost(preference, problem.norm, codes, np.bincount(codes) - counts)
    elif preference.kind == "column":
        values = problem.column(str(config.cost), "name another column with `cost=`, or leave cost out")
        cost = difficulty.cost_of(values, rng)
    else:
        cost = difficulty.cost(preference, problem.norm, rng)
    number = buckets.count(config.buckets, problem)
    represent = preference.kind == "cover"
    mask, inexact = buckets.drop_rows(problem, cost, counts, number, rng, represent=represent)
    notes = [f"{'Cost' if config.cost else f'Difficulty {config.difficulty}'}: {preference.reason}."]
    if inexact:
        notes.append(
            f"The balance could not be met exactly in {inexact} of {number} buckets; the nearest point was taken."
        )
    return Choice(mask, tuple(notes), {"difficulty": preference.to_dict(), "buckets": number})
