"""The selection methods: each is one function from a problem and a size to the rows that go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from . import baselines, buckets, difficulty, geometry
from .choice import Choice, drop_counts
from .options import Options
from .problem import Problem


def influence(problem: Problem, dropped: int, options: Options) -> Choice:
    """The linear program: the subset whose predicted shift is least, among them the one that `difficulty` prefers."""
    rng = np.random.default_rng(options.seed)
    if options.cost is None:
        rate = dropped / problem.n
        preference = difficulty.choose(options.difficulty, problem.norm, rate, problem.has_all("aum"))
        hardness = -problem.column("aum") if preference.by == "aum" else problem.norm
        cost = difficulty.cost(preference, hardness, rng)
    else:
        preference = difficulty.Preference("column", None, None, f"rows of large {options.cost!r} were asked for")
        values = problem.column(options.cost, "name another column with `cost=`, or leave cost out")
        cost = difficulty.cost_of(values, rng)
    number = buckets.count(options.buckets, problem)
    mask, inexact = buckets.drop_rows(problem, cost, drop_counts(problem, dropped), number, rng)
    notes = [f"{'Cost' if options.cost else f'Difficulty {options.difficulty}'}: {preference.reason}."]
    if inexact:
        notes.append(
            f"The balance could not be met exactly in {inexact} of {number} buckets; the nearest point was taken."
        )
    return Choice(mask, tuple(notes), {"difficulty": preference.to_dict(), "buckets": number})


METHODS: dict[str, Callable[[Problem, int, Options], Choice]] = {
    "influence": influence,
    "random": baselines.random,
    "stratified": baselines.stratified,
    "norm": baselines.norm,
    **{name: partial(baselines.hardest, column=name) for name in ("el2n", "grand", "forgetting", "aum", "loss")},
    "tdds": baselines.tdds,
    "ccs": baselines.ccs,
    "moderate": geometry.moderate,
    "herding": geometry.herding,
    "kcenter": geometry.kcenter,
}


def find(name: str) -> Callable[[Problem, int, Options], Choice]:
    """The method of that name; raises a `ValueError` that lists them if there is none."""
    if name not in METHODS:
        raise ValueError(f"method={name!r} is not known: pass one of {sorted(METHODS)}.")
    return METHODS[name]
