"""What short retrainings said of a few candidate subsets, and whether that carries a preference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance
from typing import Any

from scipy.stats import t

BALANCED = "balanced"
"""Name of the choice without a preference, which is taken where none is shown to be better than random rows."""
LEVEL = 0.05
"""Chance, over all candidates together, that one is taken for better than random though none is."""


@dataclass(frozen=True)
class Candidate:
    """
    One candidate's retrainings.

    Args:
        name (`str`): What was tried.
        metric (`float`): Mean of the metric over its seeds.
        gain (`float`): Mean over its seeds of the metric minus that of random rows with the same seed, signed so
            that + is better.
        error (`float`, *optional*): Standard error of `gain`, from the spread of all candidates' differences; None
            where nothing was trained twice.
        seeds (`int`): Retrainings of it.
    """

    name: str
    metric: float
    gain: float
    error: float | None
    seeds: int


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
        candidates (`tuple[Candidate, ...]`): From the one tried longest and best to the one given up first.
        chosen (`str`): The candidate that was taken.
        beats_random (`bool`): Whether the best candidate's gain is beyond chance.
    """

    metric: str
    budget: str
    eval_rows: int
    eval_digest: str
    trainings: int
    cost: float
    candidates: tuple[Candidate, ...]
    chosen: str
    beats_random: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evidence:
        """Reads what `to_dict` wrote."""
        return cls(**(dict(values) | {"candidates": tuple(Candidate(**c) for c in values["candidates"])}))

    def explain(self) -> str:
        """The evidence in one sentence."""
        best = self.candidates[0]
        error = "" if best.error is None else f" (standard error {best.error:.2g})"
        size = f"{self.trainings} retrainings at {self.cost:.2g} times the cost of training on all rows"
        what = f"{best.name} was {best.gain:+.3g} {self.metric} from random rows over {best.seeds} seeds{error}"
        verdict = (
            "beyond chance, so it was taken" if self.beats_random else f"within chance, so {self.chosen} was taken"
        )
        return f"Probe of {size}, equal {self.budget}: {what}, {verdict}."


def gains(
    values: Mapping[str, Sequence[float]], random: Sequence[float], sign: int
) -> tuple[tuple[Candidate, ...], int]:
    """
    Gains over random rows, paired by seed.

    The n values of a candidate belong to the first n seeds of `random`. The standard error pools the variance of the
    differences over all candidates that were trained twice or more.

    Args:
        values (`Mapping[str, Sequence[float]]`): The metric of each candidate by seed.
        random (`Sequence[float]`): The metric of random rows by seed.
        sign (`int`): 1 where more of the metric is better, -1 where less is.

    Returns:
        `tuple[tuple[Candidate, ...], int]`: The candidates, those of most seeds first, then by gain; and the degrees
        of freedom of the standard error.
    """
    rows = {
        name: [sign * (value - base) for value, base in zip(found, random, strict=False)]
        for name, found in values.items()
    }
    freedom = sum(len(row) - 1 for row in rows.values())
    squares = sum((len(row) - 1) * variance(row) for row in rows.values() if len(row) > 1)
    found = [
        Candidate(
            name=name,
            metric=fmean(values[name]),
            gain=fmean(row),
            error=math.sqrt(squares / freedom / len(row)) if freedom else None,
            seeds=len(row),
        )
        for name, row in rows.items()
    ]
    return tuple(sorted(found, key=lambda candidate: (-candidate.seeds, -candidate.gain))), freedom


def beyond_chance(best: Candidate, freedom: int, candidates: int) -> bool:
    """Whether the best of so many gains more than chance gives one of them (one-sided t test, Bonferroni)."""
    return best.error is not None and best.gain > float(t.ppf(1 - LEVEL / candidates, freedom)) * best.error
