"""What retrainings of a few candidate subsets said, and whether that carries a preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from scipy.stats import t

from hf_prune._core.reading import Count, Positive, typed

BALANCED = "balanced"
"""Name of the choice without a preference, which is taken where no other is shown to be better."""
RANDOM = "random"
"""Random rows, drawn again for each seed."""
LEVEL = 0.05
"""Chance that the best candidate looks better than random rows though it is not."""


@dataclass(frozen=True)
class Candidate:
    """
    One candidate's retrainings, beside those of random rows and of the balanced choice with the same seeds.

    Args:
        name (`str`): What was tried.
        metric (`float`): Mean of the metric over its seeds.
        gain (`float`): Mean of the metric minus that of random rows, signed so that + is better.
        error (`float`): Standard error of `gain`: both seeds and held-out rows are drawn.
        ahead (`float`): Mean of the metric minus that of the balanced choice, signed likewise.
        ahead_error (`float`): Standard error of `ahead`.
        seeds (`int`): Retrainings of it.
    """

    name: str
    metric: float
    gain: float
    error: float
    ahead: float
    ahead_error: float
    seeds: Positive


@dataclass(frozen=True)
class Evidence:
    """
    What a probe measured.

    Args:
        metric (`str`): Name of the metric.
        budget (`str`): `"epochs"` or `"steps"`: what all retrainings have the same number of.
        eval_rows (`int`): Rows it was measured on.
        eval_digest (`str`): Their content digest.
        trainings (`int`): Retrainings, random ones included.
        cost (`float`): What they cost, in trainings on all rows.
        candidates (`tuple[Candidate, ...]`): The best of the first seed, then the balanced choice, which both were
            trained with every seed; then the others by gain.
        chosen (`str`): The candidate that was taken.
        beats_random (`bool`): Whether the first candidate's gain over random rows is beyond chance.
    """

    metric: str
    budget: Annotated[str, Meta(pattern=r"^(epochs|steps)$")]
    eval_rows: Count
    eval_digest: str
    trainings: Count
    cost: float
    candidates: Annotated[tuple[Candidate, ...], Meta(min_length=1)]
    chosen: str
    beats_random: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evidence:
        """Reads what `to_dict` wrote."""
        return typed(values, cls)

    def explain(self) -> str:
        """The evidence in one sentence."""
        best = self.candidates[0]
        size = f"{self.trainings} retrainings at {self.cost:.2g} times the cost of training on all rows"
        what = (
            f"{best.name} was {best.gain:+.3g} {self.metric} from random rows (standard error {best.error:.2g}) and "
            f"{best.ahead:+.3g} from the balanced choice ({best.ahead_error:.2g}) over {best.seeds} seeds"
        )
        verdict = "beyond noise, so it was taken" if self.chosen == best.name else f"so {self.chosen} was taken"
        return f"Probe of {size}, equal {self.budget}: {what}, {verdict}."


def weigh(values: Mapping[str, np.ndarray], sign: int) -> tuple[Candidate, ...]:
    """
    The candidates beside random rows and the balanced choice, the one to take or leave first.

    Held-out rows are drawn as well as seeds, and every model answers the same rows: the variance of a mean difference
    is that of the seeds' means over seeds plus that of the blocks' means over blocks (Owen, 2007, The pigeonhole
    bootstrap). The variance over seeds is that of the pairs that were trained more than once, for all candidates.

    Args:
        values (`Mapping[str, np.ndarray]`): The metric of each candidate and of `"random"`, `(seeds, blocks)`: a
            block is a part of the held-out rows. The n seeds of a candidate are the first n of all.
        sign (`int`): 1 where more of the metric is better, -1 where less is.
    """
    most = max(len(found) for found in values.values())
    (best,) = [name for name, found in values.items() if len(found) == most and name not in (BALANCED, RANDOM)]
    pairs = [values[best] - values[other] for other in (BALANCED, RANDOM)]
    over_seeds = float(np.mean([pair.mean(axis=1).var(ddof=1) for pair in pairs]))

    def against(name: str, other: str) -> tuple[float, float]:
        found = values[name]
        means = sign * (found - values[other][: len(found)]).mean(axis=0)
        over_blocks = means.var(ddof=1) / len(means)
        return float(means.mean()), float((over_seeds / len(found) + over_blocks) ** 0.5)

    candidates = [
        Candidate(name, float(found.mean()), *against(name, RANDOM), *against(name, BALANCED), len(found))
        for name, found in values.items()
        if name != RANDOM
    ]
    return tuple(sorted(candidates, key=lambda c: (c.name != best, c.name != BALANCED, -c.gain)))


def beats_random(best: Candidate) -> bool:
    """
    Whether the best gains more over random rows than chance gives (one-sided t test; a seed has two pairs).

    The first seed, on which it was the best, counts too: where nothing differs but by chance, 1 to 11 % pass instead
    of 5, fewest where the held-out rows' noise is larger than the seeds'.
    """
    return best.gain > float(t.ppf(1 - LEVEL, 2 * (best.seeds - 1))) * best.error


def preferred(best: Candidate) -> bool:
    """
    Whether to take the best instead of the balanced choice.

    It has to beat random rows beyond chance, and the balanced choice by a standard error, as simpler models are left
    for better ones (Breiman et al., 1984, Classification and Regression Trees, the 1 SE rule).
    """
    return beats_random(best) and best.ahead > best.ahead_error
