"""The selection methods: each is one function from a problem and a size to the rows that go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from . import annealing, baselines, buckets, difficulty, geometry
from .choice import Choice, class_codes, drop_counts
from .options import Options
from .problem import Problem


def influence(problem: Problem, dropped: int, options: Options) -> Choice:
    """By influence vectors, what `difficulty` asks for: rows that represent all, or dropped rows that cancel out."""
    rng = np.random.default_rng(options.seed)
    counts, codes = drop_counts(problem, dropped), class_codes(problem)
    if options.cost is None:
        within = options.epsilon is not None
        rate = dropped / problem.n
        preference = difficulty.choose(options.difficulty, problem.norm, problem.eval_loss, rate, within)
    else:
        preference = difficulty.Preference("column", f"rows of large {options.cost!r} were asked for")
    if preference.kind == "cover":
        cost = difficulty.cover_cost(preference, problem.norm, codes, np.bincount(codes) - counts)
    elif preference.kind == "column":
        values = problem.column(str(options.cost), "name another column with `cost=`, or leave cost out")
        cost = difficulty.cost_of(values, rng)
    else:
        cost = difficulty.cost(preference, problem.norm, rng)
    number = buckets.count(options.buckets, problem)
    represent = preference.kind == "cover"
    mask, inexact = buckets.drop_rows(problem, cost, counts, number, rng, represent=represent)
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
    "iclr2023": annealing.iclr2023,
}


def find(name: str) -> Callable[[Problem, int, Options], Choice]:
    """The method of that name; raises a `ValueError` that lists them if there is none."""
    if name not in METHODS:
        raise ValueError(f"method={name!r} is not known: pass one of {sorted(METHODS)}.")
    return METHODS[name]
