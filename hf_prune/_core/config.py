"""What a user asks of scoring and of selection: checked once, written to JSON and read back, and documented here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Self

from hf_prune._core import checks
from hf_prune._core.checks import flag, one_of, optional, text
from hf_prune._core.columns import INFLUENCE
from hf_prune._core.reading import check_fields

ENGINES = ("auto", "dense", "projected")
MODES = ("expected", "visits")
SPACES = ("outputs", "parameters")
CURVATURES = ("auto", "none", "fisher", "gauss-newton", "exact")
UNITS = {
    "outputs": "RMS shift of a held-out logit vector",
    "parameters": "L2 shift of the trained parameters",
}
"""What the L2 norm over all directions estimates, by the space that the directions were drawn in."""


@dataclass(frozen=True)
class Config:
    """Base of the configurations: `to_dict` and `from_dict` are inverse to each other."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """
        Reads what `to_dict` wrote, by this version or an older one.

        Raises:
            `ValueError`: for a field that this version does not know, and for a value that is not allowed.
        """
        check_fields(cls, values)
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from error

    @classmethod
    def of(cls, **arguments: Any) -> Self:
        """
        Makes a configuration of keyword arguments.

        Raises:
            `TypeError`: for an argument that is no field; names the one that was probably meant.
        """
        known = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}."
                raise TypeError(f"There is no option {name!r}: {hint}")
        return cls(**arguments)

    def changed(self) -> dict[str, Any]:
        """The fields whose values differ from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def _check(self, allowed: Mapping[str, checks.Check]) -> None:
        """Replaces each value by what its check makes of it: numpy scalars become numbers that JSON can hold."""
        for name, check in allowed.items():
            object.__setattr__(self, name, check(getattr(self, name)))


@dataclass(frozen=True)
class ScoringConfig(Config):
    """
    How influence columns are made: the arguments of [`add_influence`] that decide about the values.

    Args:
        version (`str`, *optional*): Version of the computation that made the columns.
        engine (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"dense"` or `"projected"`.
        mode (`str`, *optional*, defaults to `"expected"`): `"expected"` or `"visits"`.
        space (`str`, *optional*, defaults to `"outputs"`): `"outputs"` or `"parameters"`.
        curvature (`str`, *optional*, defaults to `"auto"`):
            `"auto"`, `"exact"`, `"gauss-newton"`, `"fisher"` or `"none"`.
        directions (`int`, *optional*, defaults to 64): k, the length of an influence vector.
        seed (`int`, *optional*, defaults to 0): Seed of the random directions.
        column (`str`, *optional*, defaults to `"influence"`): Name of the columns.
        eval_digest (`str`, *optional*): Content digest of the held-out rows.
        until (`int`, *optional*): The step whose model was scored, where it is not the run's last.
        draws (`int`, *optional*, defaults to 1): Draws of random rows that the scores are means over.
    """

    version: str | None = None
    engine: str = "auto"
    mode: str = "expected"
    space: str = "outputs"
    curvature: str = "auto"
    directions: int = 64
    seed: int = 0
    column: str = INFLUENCE
    eval_digest: str | None = None
    until: int | None = None
    draws: int = 1

    def __post_init__(self) -> None:
        self._check(
            {
                "version": optional(text("version")),
                "engine": one_of("engine", ENGINES),
                "mode": one_of("mode", MODES),
                "space": one_of("space", SPACES),
                "curvature": one_of("curvature", CURVATURES),
                "directions": checks.directions,
                "seed": checks.seed,
                "column": text("column"),
                "eval_digest": optional(text("eval_digest")),
                "until": optional(checks.step),
                "draws": checks.draws,
            }
        )

    @property
    def units(self) -> str:
        """What the length of an influence vector estimates."""
        return UNITS[self.space]

    def arguments(self) -> dict[str, Any]:
        """The fields that are arguments of `add_influence`."""
        return {name: value for name, value in self.to_dict().items() if name not in ("version", "eval_digest")}


@dataclass(frozen=True)
class AttributionConfig(Config):
    """
    How rows were found for queries: the arguments of [`attribute`] that decide about the values.

    Args:
        version (`str`, *optional*): Version of the computation.
        engine (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"dense"` or `"projected"`.
        mode (`str`, *optional*, defaults to `"expected"`): `"expected"` or `"visits"`.
        curvature (`str`, *optional*, defaults to `"auto"`):
            `"auto"`, `"exact"`, `"gauss-newton"`, `"fisher"` or `"none"`.
        k (`int`, *optional*, defaults to 10): Rows at the top and at the bottom that are shown.
        tokens (`str`, *optional*): `"query"` or `"row"`: whose tokens are told apart.
        until (`int`, *optional*): The step whose model is asked about, where it is not the run's last.
        draws (`int`, *optional*, defaults to 1): Draws of random rows that the influences are means over.
    """

    version: str | None = None
    engine: str = "auto"
    mode: str = "expected"
    curvature: str = "auto"
    k: int = 10
    tokens: str | None = None
    until: int | None = None
    draws: int = 1

    def __post_init__(self) -> None:
        self._check(
            {
                "version": optional(text("version")),
                "engine": one_of("engine", ENGINES),
                "mode": one_of("mode", MODES),
                "curvature": one_of("curvature", CURVATURES),
                "k": checks.rows_shown,
                "tokens": optional(one_of("tokens", ("query", "row"))),
                "until": optional(checks.step),
                "draws": checks.draws,
            }
        )


@dataclass(frozen=True)
class SelectionConfig(Config):
    """
    What is asked of [`prune`] and [`select`].

    Args:
        keep (`float` or `int`, *optional*):
            What to keep: a share in (0, 1], or a whole number of rows. Either this or `epsilon` has to be given.
        epsilon (`float`, *optional*):
            Keep as few rows as leave the predicted shift (the L2 norm over all directions of
            `n/(n-m) * sum over the m dropped rows of (S_i - mean S)`) at most this large; found to n/1024 rows. Its
            unit is that of the influence column: the RMS shift of a held-out logit vector.
        method (`str`, *optional*, defaults to `"influence"`):
            `"influence"` keeps rows that represent all of them, by influence vectors and features, or what
            `difficulty`, `hard`, `cut` or `cost` ask for. Baselines that need no other column
            are `"random"`, `"stratified"` (random within classes) and `"norm"` (keeps the largest `influence_norm`);
            `"el2n"`, `"grand"`, `"forgetting"`, `"aum"`, `"loss"`, `"tdds"` and `"ccs"` read the columns of
            `add_scores`; `"moderate"`, `"herding"` and `"kcenter"` measure distances between rows;
            `"iclr2023"` ([arXiv 2205.09329](https://hf.co/papers/2205.09329)) reads the last layer's influence.
            `"target"` keeps the rows that serve the task of the `eval_dataset` that was scored with, by their
            influence; baselines for that are `"less"` and `"rds"`, which read the columns of `add_scores(...,
            eval_dataset=...)`, and `"length"`, which keeps the rows of the most `input_ids`.
        difficulty (`str` or `float`, *optional*, defaults to `"auto"`):
            Which of the balanced subsets to take. `"auto"` has no preference: class by class, one by one, each kept
            row brings the kept ones' mean influence and mean features nearest to those of all rows (herding). A
            number in [0, 1] keeps rows near that quantile of `influence_norm` (1 keeps the hardest), and None any, by
            a linear program whose removed rows cancel out; with `epsilon`, `"auto"` is None.
        hard (`float`, *optional*, defaults to 0.0):
            Share of the kept rows that goes to the hardest of each class (largest `influence_norm`); the others
            represent the rest. A preference: ask a probe before relying on it.
        cut (`float`, *optional*, defaults to 0.0):
            Share of all rows that is left out for being hardest, so far as `keep` allows. A preference too.
        cost (`str`, *optional*):
            A column of numbers that takes the place of `difficulty`: the cost of dropping each row in the linear
            program, so that rows of large values are kept.
        harmful (`str`, *optional*, defaults to `"keep"`):
            `"drop"` drops rows that are predicted to harm the model, such as wrongly labelled ones, before all others
            (and no more rows than go anyway); the certificate says which, and by which rule. They are those of the
            lowest `aum`, as many as have `aum < 0` (another class was believed more over the recorded epochs) and,
            besides, are predicted to lower the held-out loss by going (`influence_eval_loss < 0`) or have a loss worse
            than a guess's (`loss > ln classes`). Needs the columns of `add_scores`.
        balance (`str` or `False`, *optional*):
            Column whose class shares are kept, or `False` for none. By default `label` or `labels`, if it holds
            classes.
        centred (`bool`, *optional*, defaults to `True`):
            Whether influence is centred and re-weighted by `n/(n-m)`, as retraining on fewer rows does; `False` takes
            the plain sum over the dropped rows.
        features (`str`, *optional*):
            Column of vectors that `"moderate"`, `"herding"` and `"kcenter"` measure distances in; by default the
            influence vectors.
        buckets (`int` or `str`, *optional*, defaults to `"auto"`):
            Number of parts that are solved on their own before the residual is carried through them; `"auto"` makes
            one of up to 20,000 rows, and of more rows parts of 10,000.
        column (`str`, *optional*, defaults to `"influence"`):
            The influence column.
        seed (`int`, *optional*, defaults to 0):
            Breaks ties, and draws buckets and random subsets.
    """

    keep: float | int | None = None
    epsilon: float | None = None
    method: str = "influence"
    difficulty: str | float | None = "auto"
    hard: float = 0.0
    cut: float = 0.0
    cost: str | None = None
    harmful: str = "keep"
    balance: str | bool | None = None
    centred: bool = True
    features: str | None = None
    buckets: int | str = "auto"
    column: str = INFLUENCE
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(
            {
                "keep": optional(checks.keep),
                "epsilon": optional(checks.epsilon),
                "method": text("method"),
                "difficulty": checks.difficulty,
                "hard": checks.share("hard"),
                "cut": checks.share("cut"),
                "cost": optional(text("cost")),
                "harmful": checks.harmful,
                "balance": checks.balance,
                "centred": flag("centred"),
                "features": optional(text("features")),
                "buckets": checks.buckets,
                "column": text("column"),
                "seed": checks.seed,
            }
        )
        if (self.keep is None) == (self.epsilon is None):
            how = "neither keep= nor epsilon=" if self.keep is None else "both keep= and epsilon="
            raise ValueError(
                f"Got {how}: pass one of them, keep=0.5 for half of the rows or epsilon=0.1 for "
                "the smallest subset whose predicted shift stays within 0.1."
            )
        if self.cost is not None and self.difficulty != "auto":
            raise ValueError("Got both difficulty and cost: pass one of them, for cost takes the place of difficulty.")
        if (self.hard or self.cut) and (
            self.difficulty != "auto" or self.cost is not None or self.epsilon is not None
        ):
            raise ValueError(
                "hard and cut say which rows are represented: leave them out, or leave out difficulty, cost and "
                "epsilon."
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
