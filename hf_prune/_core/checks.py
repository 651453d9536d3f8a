"""Checks of single arguments: each returns the value as JSON can hold it, or says what is wrong and what to pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

Check = Callable[[Any], Any]


def optional(check: Check) -> Check:
    """None, or what `check` allows."""
    return lambda value: None if value is None else check(value)


def one_of(name: str, known: tuple[str, ...]) -> Check:
    """One of the known strings."""

    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}.")
        return str(value)

    return check


def share(name: str) -> Check:
    """A number in [0, 1]."""

    def check(value: Any) -> float:
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be a share in [0, 1], not {value!r}.")
        return float(value)

    return check


def directions(value: Any) -> int:
    if not _is_whole(value) or value < 1:
        raise ValueError(f"directions must be a whole number from 1 on, not {value!r}.")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def keep(value: Any) -> float | int:
    if not _is_number(value):
        raise TypeError(
            f"keep is a share in (0, 1] or a whole number of rows, got {type(value).__name__} {value!r}: pass for "
            "example keep=0.5 or keep=1000."
        )
    if _is_whole(value):
        return int(value)  # checked against the number of rows in `kept_rows`
    share = float(value)
    if not 0 < share <= 1:
        raise ValueError(
            f"keep={share} is not in (0, 1]: pass the share to keep, such as keep=0.5, or an int for a number of rows."
        )
    return share


def epsilon(value: Any) -> float:
    if not _is_number(value):
        raise TypeError(f"epsilon is a positive number, got {type(value).__name__} {value!r}: pass for example 0.1.")
    epsilon = float(value)
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(
            f"epsilon={epsilon} is not a positive finite number: pass the largest predicted shift to allow, such as "
            "epsilon=0.1."
        )
    return epsilon


def difficulty(value: Any) -> str | float | None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return value
    if not _is_number(value):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"difficulty={value!r} is not known: pass 'auto', a quantile in [0, 1], or None for no preference.")
    quantile = float(value)
    if not 0 <= quantile <= 1:
        raise ValueError(f"difficulty={quantile} is not in [0, 1]: pass a quantile such as 0.7, 'auto' or None.")
    return quantile


def balance(value: Any) -> str | bool | None:
    if value is None or value is False or isinstance(value, str):
        return value
    raise TypeError(
        f"balance={value!r} is not known: pass a column name such as balance='label', False for none, or None to "
        "find the label column."
    )


def buckets(value: Any) -> int | str:
    if isinstance(value, str) and value == "auto":
        return value
    if not _is_whole(value):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"buckets={value!r} is not known: pass 'auto' or a number of buckets, such as buckets=8.")
    if value < 1:
        raise ValueError(f"buckets={value} is less than 1: pass 'auto' or a number of buckets, such as buckets=8.")
    return int(value)


def seed(value: Any) -> int:
    if not _is_whole(value):
        raise TypeError(f"seed is a whole number, got {type(value).__name__} {value!r}: pass for example seed=0.")
    if value < 0:
        raise ValueError(f"seed={value} is negative: pass a whole number from 0 up.")
    return int(value)


def draws(value: Any) -> int:
    if not _is_whole(value) or value < 1:
        raise ValueError(f"draws must be a whole number from 1 on, not {value!r}.")
    return int(value)


def rows_shown(value: Any) -> int:
    if not _is_whole(value) or value < 1:
        raise ValueError(f"k must be a whole number from 1 on, not {value!r}.")
    return int(value)


def step(value: Any) -> int:
    if not _is_whole(value) or value < 1:
        raise ValueError(f"until must be the number of a step, from 1 on, or None, not {value!r}.")
    return int(value)


def text(name: str) -> Check:
    """A string."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{name} is a string, got {type(value).__name__} {value!r}.")
        return value

    return check


def flag(name: str) -> Check:
    """True or False."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name} is True or False, got {type(value).__name__} {value!r}.")
        return value

    return check


def harmful(value: Any) -> str:
    if value not in ("keep", "drop"):
        raise ValueError(f"harmful={value!r} is not known: pass 'keep', or 'drop' to drop harmful rows first.")
    return str(value)
