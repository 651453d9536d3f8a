"""What retraining showed, in plain words: what leaving rows out costs, and whether random rows would do as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_prune._core.units import Unit

TOLERATED = 0.05
"""Share of the metric on all rows: where a larger loss is not excluded, what leaving rows out costs is not told."""


def loses(found: Any) -> bool | None:
    """Whether leaving the rows out costs something beyond the interval; None if the retrainings do not tell."""
    if found.gap.interval is None:
        return None
    low, high = _losses(found)
    if low > 0:
        return True
    return False if high <= TOLERATED * abs(found.full.metric.mean) else None


def _losses(found: Any) -> tuple[float, float]:
    """The interval of what leaving rows out costs: positive is worse."""
    low, high = found.gap.interval
    return (low, high) if found.greater_is_better else (-high, -low)


def ahead_of_random(found: Any) -> int | None:
    """1 if pruned rows are ahead of random ones beyond the interval, -1 if behind, 0 if neither; None if untold."""
    beside = found.beside_random
    if beside is None or beside.interval is None:
        return None
    low, high = beside.interval
    sign = 1 if found.greater_is_better else -1
    return sign if low > 0 else -sign if high < 0 else 0


def sentence(found: Any) -> str:
    """One verification in one or two sentences with its figures."""
    unit = Unit(found.metric)
    share = f"{1 - found.pruned.rows / found.full.rows:.0%}"
    values = (
        f"{found.metric} {unit.value(found.pruned.metric.mean)}, with all rows {unit.value(found.full.metric.mean)}"
    )
    if found.gap.interval is None:
        return (
            f"Without {share} of the rows: {values}. One training an arm shows no difference beyond chance: verify "
            "with more seeds."
        )
    cost = f"{unit.difference(found.gap, factor=1 if found.greater_is_better else -1)} of {found.metric}"
    if loses(found):
        start = f"Leaving out {share} of the rows costs {cost}: {values}"
    elif loses(found) is None:
        start = f"What leaving out {share} of the rows costs is not told by {_seeds(found)}: {values}, {cost}"
    else:
        start = (
            f"{share} of the rows can go without measurable loss: {values}; {_at_most(found, unit)} are not excluded"
        )
    return f"{start}. {_beside(found, unit)}"


def _seeds(found: Any) -> str:
    return f"{len(found.full.runs)} seeds"


def _at_most(found: Any, unit: Unit) -> str:
    """The largest loss within the interval: that none was seen does not mean that there is none."""
    word = "points" if unit.is_share else "less of it" if found.greater_is_better else "more of it"
    return f"up to {unit.amount(max(0.0, _losses(found)[1]))} {word}"


def _beside(found: Any, unit: Unit) -> str:
    beside, ahead = found.beside_random, ahead_of_random(found)
    if beside is None or found.random is None:
        return "Random rows were not trained on, so whether they would do as well is not known."
    sign = 1 if found.greater_is_better else -1
    if ahead == 0:
        return f"The kept rows are not told apart from as many random rows: {unit.difference(beside, factor=sign)}."
    word, factor = ("ahead of", sign) if ahead == 1 else ("behind", -sign)
    return f"The kept rows are {word} as many random ones by {unit.difference(beside, factor=factor)}."


def headline(verified: Mapping[float, Any]) -> str:
    """
    The verdict over several rates, in one sentence.

    Args:
        verified (`Mapping[float, Verification]`): By the share of rows that was pruned.
    """
    rates = sorted(verified)
    first = verified[rates[0]]
    unit = Unit(first.metric)
    if first.gap.interval is None:
        return "One training an arm shows no difference beyond chance: verify with more seeds for a verdict."
    free = None
    for rate in rates:
        if loses(verified[rate]) is not False:
            break
        free = verified[rate]
    sign = 1 if first.greater_is_better else -1
    cost = f"{unit.difference(first.gap, factor=sign)} of {first.metric}"
    if free is not None:
        start = (
            f"{1 - free.pruned.rows / free.full.rows:.0%} of the rows can go without measurable loss of "
            f"{first.metric} ({_at_most(free, unit)} are not excluded)"
        )
    elif loses(first):
        start = f"Leaving out {rates[0]:.0%} of the rows costs {cost}"
    else:
        start = f"{_seeds(first)} do not tell what leaving out {rates[0]:.0%} of the rows costs: {cost}"
    return f"{start}; {_over_rates(verified, rates, unit, sign)}."


def _over_rates(verified: Mapping[float, Any], rates: list[float], unit: Unit, sign: int) -> str:
    told = {rate: ahead_of_random(verified[rate]) for rate in rates}
    if all(value is None for value in told.values()):
        return "random rows were not trained on for comparison"
    parts = []
    for value, word in ((1, "ahead of"), (-1, "behind")):
        places = [rate for rate in rates if told[rate] == value]
        by = []
        for rate in places:
            beside = verified[rate].beside_random
            assert beside is not None
            by.append(f"at {rate:.0%} by {unit.difference(beside, factor=sign * value)}")
        if by:
            parts.append(f"{word} random ones {', '.join(by)}")
    if not parts:
        return "the kept rows are not told apart from as many random ones"
    return f"the kept rows are {' and '.join(parts)}"
