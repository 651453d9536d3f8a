"""The arguments of `prune` and `select`, checked once, before any column is read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

FEATURE_METHODS = ("herding", "kcenter", "moderate")
"""Methods that measure distances between rows."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; the parameters are documented in [`prune`]."""

    keep: float | int | None = None
    epsilon: float | None = None
    method: str = "influence"
    difficulty: str | float | None = "auto"
    balance: str | bool | None = None
    buckets: int | str = "auto"
    column: str = "influence"
    seed: int = 0
    cost: str | None = None
    harmful: str = "keep"
    features: str | None = None
    centred: bool = True

    def __post_init__(self) -> None:
        # numpy scalars become plain numbers here, so that the arguments can be written as JSON
        for name, check in (
            ("keep", _keep),
            ("epsilon", _epsilon),
            ("difficulty", _difficulty),
            ("balance", _balance),
            ("buckets", _buckets),
            ("seed", _seed),
            ("method", _text),
            ("column", _text),
            ("cost", _name),
            ("harmful", _harmful),
            ("features", _name),
            ("centred", _flag),
        ):
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if (self.keep is None) == (self.epsilon is None):
            how = "neither" if self.keep is None else "both"
            raise ValueError(
                f"Got {how} of keep and epsilon: pass one of them, keep=0.5 for half of the rows or epsilon=0.1 for "
                "the smallest subset whose predicted shift stays within 0.1."
            )
        self._check_together()

    def _check_together(self) -> None:
        if self.cost is not None and self.method != "influence":
            raise ValueError(f"method={self.method!r} has no use for cost: leave it out, or pass method='influence'.")
        if self.cost is not None and self.difficulty != "auto":
            raise ValueError("Got both difficulty and cost: pass one of them, for cost takes the place of difficulty.")
        if self.features is not None and self.method not in FEATURE_METHODS:
            raise ValueError(
                f"method={self.method!r} has no use for features: leave it out, or pass one of {FEATURE_METHODS}."
            )

    def kept_rows(self, n: int) -> int:
        """Number of rows to keep of `n`; a share is rounded to the nearest row and keeps at least one."""
        if isinstance(self.keep, float):
            return max(1, math.floor(self.keep * n + 0.5))
        if self.keep is None or not 1 <= self.keep <= n:
            raise ValueError(
                f"keep={self.keep} is not within 1..{n}, the rows of the dataset: pass a whole number of rows in that "
                "range, or a share such as keep=0.5."
            )
        return self.keep

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _keep(name: str, value: Any) -> float | int | None:
    if value is None:
        return None
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


def _epsilon(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise TypeError(f"epsilon is a positive number, got {type(value).__name__} {value!r}: pass for example 0.1.")
    epsilon = float(value)
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(
            f"epsilon={epsilon} is not a positive finite number: pass the largest predicted shift to allow, such as "
            "epsilon=0.1."
        )
    return epsilon


def _difficulty(name: str, value: Any) -> str | float | None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return value
    if not _is_number(value):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"difficulty={value!r} is not known: pass 'auto', a quantile in [0, 1], or None for no preference.")
    quantile = float(value)
    if not 0 <= quantile <= 1:
        raise ValueError(f"difficulty={quantile} is not in [0, 1]: pass a quantile such as 0.7, 'auto' or None.")
    return quantile


def _balance(name: str, value: Any) -> str | bool | None:
    if value is None or value is False or isinstance(value, str):
        return value
    raise TypeError(
        f"balance={value!r} is not known: pass a column name such as balance='label', False for none, or None to "
        "find the label column."
    )


def _buckets(name: str, value: Any) -> int | str:
    if isinstance(value, str) and value == "auto":
        return value
    if not _is_whole(value):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"buckets={value!r} is not known: pass 'auto' or a number of buckets, such as buckets=8.")
    if value < 1:
        raise ValueError(f"buckets={value} is less than 1: pass 'auto' or a number of buckets, such as buckets=8.")
    return int(value)


def _seed(name: str, value: Any) -> int:
    if not _is_whole(value):
        raise TypeError(f"seed is a whole number, got {type(value).__name__} {value!r}: pass for example seed=0.")
    if value < 0:
        raise ValueError(f"seed={value} is negative: pass a whole number from 0 up.")
    return int(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a string, got {type(value).__name__} {value!r}.")
    return value


def _name(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _harmful(name: str, value: Any) -> str:
    if value not in ("keep", "drop"):
        raise ValueError(f"harmful={value!r} is not known: pass 'keep', or 'drop' to drop harmful rows first.")
    return str(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, got {type(value).__name__} {value!r}.")
    return value
