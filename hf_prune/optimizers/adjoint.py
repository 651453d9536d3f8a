"""What an optimizer's adjoint is, and the table of them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch

from hf_prune.optimizers.layout import GroupLayout


class OptimizerAdjoint(ABC):
    """
    How cotangents go back through one update of an optimizer.

    A is the cotangent of the parameters, M that of the momentum or first moment, C that of the step's gradient, each
    `(k, p)` for k queries and p parameters. [`~hf_prune.testing.check_adjoint`] compares an adjoint with its
    optimizer.

    Attributes:
        hyper_parameters (`tuple[str, ...]`): Keys of a parameter group that a record keeps, apart from learning rates.
        has_second_moment (`bool`): Whether the update divides by a denominator made from `exp_avg_sq` of the
            optimizer's state, which snapshots then keep.
    """

    hyper_parameters: ClassVar[tuple[str, ...]] = ()
    has_second_moment: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_groups(cls, name: str, groups: list[dict[str, Any]], layout: GroupLayout) -> Self:
        """
        Args:
            name (`str`): The optimizer's class, by its name.
            groups (`list[dict]`): Recorded hyper-parameters of each parameter group.
            layout (`GroupLayout`): Spreads one value a group over the flat parameter vector.
        """

    @abstractmethod
    def start(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A and M at the end of the run; `queries (k, p)` may be used as A."""

    @abstractmethod
    def step_adjoint_(
        self,
        A: torch.Tensor,
        M: torch.Tensor,
        learning_rates: tuple[float, ...],
        denominator: torch.Tensor | None,
        updates: int,
    ) -> torch.Tensor:
        """
        Returns C, and leaves in `M` the cotangent of the step before.

        Args:
            A, M (`torch.Tensor`): After the step.
            learning_rates (`tuple[float, ...]`): One for each parameter group.
            denominator (`torch.Tensor`, *optional*): `(p,)`; without it, A and M are those of parameters and gradients
                that are already scaled by its square root, or the optimizer has none.
            updates (`int`): Updates before this one.
        """

    @property
    def follows_second_moment(self) -> bool:
        """Whether `second_moment_adjoint_` is there."""
        return False

    def direction(self, moved: torch.Tensor, steps: Iterable[tuple[tuple[float, ...], torch.Tensor]]) -> torch.Tensor:
        """
        What the learning rate multiplied, `(p,)`, in the mean over some updates.

        Args:
            moved (`torch.Tensor`): The parameters before these updates minus those after them.
            steps (`Iterable`): Learning rates of the groups, and the parameters before, of each update.
        """
        raise NotImplementedError(f"{type(self).__name__} follows no second moment.")

    def second_moment_adjoint_(
        self,
        A: torch.Tensor,
        V: torch.Tensor,
        learning_rates: tuple[float, ...],
        denominator: torch.Tensor,
        updates: int,
        *,
        direction: torch.Tensor,
        gradient: torch.Tensor,
        theta: torch.Tensor,
    ) -> torch.Tensor:
        """
        Returns what the second moment's cotangent `V (k, p)` adds to C, and leaves in `V` that of the step before.

        Args:
            A (`torch.Tensor`): After the step, as in `step_adjoint_`, like what is not named here.
            direction (`torch.Tensor`): What the learning rate multiplied, `(p,)`.
            gradient (`torch.Tensor`): The step's clipped gradient, `(p,)`.
            theta (`torch.Tensor`): The parameters before the step.
        """
        raise NotImplementedError(f"{type(self).__name__} follows no second moment.")

    def decay_adjoint_(self, A: torch.Tensor, C: torch.Tensor, learning_rates: tuple[float, ...]) -> None:  # noqa: B027
        """Takes `A` through the update itself, that is, weight decay; the sweep adds the curvature term."""

    @property
    def decays_before_scaling(self) -> bool:
        """Whether weight decay is part of the gradient that the denominator divides, which a sketch cannot undo."""
        return False

    @classmethod
    def describe(cls, name: str, group: dict[str, Any]) -> dict[str, Any]:
        """The hyper-parameters of a parameter group as a record keeps them."""
        return {key: group[key] for key in (*cls.hyper_parameters, "maximize") if key in group}

    @classmethod
    def second_moment_of(cls, state: Mapping[str, Any]) -> torch.Tensor | None:
        """The second moment in the optimizer's state of a parameter; `None` before its first update."""
        # With amsgrad the update divides by the largest moment so far.
        return state.get("max_exp_avg_sq", state.get("exp_avg_sq"))

    @classmethod
    def denominator(
        cls, groups: list[dict[str, Any]], layout: GroupLayout, second_moment: torch.Tensor, updates: int
    ) -> torch.Tensor:
        """What the update after `updates` others divides by, `(p,)`; only where there is a second moment."""
        raise NotImplementedError(f"{cls.__name__} says that it has a second moment but defines no denominator.")


KINDS: dict[str, type[torch.optim.Optimizer] | None] = {}
"""The optimizers that have an adjoint, by the name that records know them by; `None` for those of other libraries."""
ADJOINTS: dict[str, type[OptimizerAdjoint]] = {}
"""Their adjoints."""

Adjoint = TypeVar("Adjoint", bound=type[OptimizerAdjoint])


def adjoint_of(*kinds: type[torch.optim.Optimizer] | str) -> Callable[[Adjoint], Adjoint]:
    """
    Registers a class as the adjoint of optimizers, which can then be recorded and scored.

    Args:
        kinds (`type[torch.optim.Optimizer]` or `str`):
            The optimizers. Classes derived from them are others. Those of libraries that need not be installed are
            given by the name that [`optimizer_name`] has for them.
    """

    def register(adjoint: Adjoint) -> Adjoint:
        for kind in kinds:
            name, known = (kind, None) if isinstance(kind, str) else (kind.__name__, kind)
            if name in KINDS:
                raise ValueError(f"An adjoint of {name!r} is already registered: rename the class.")
            KINDS[name], ADJOINTS[name] = known, adjoint
        return adjoint

    return register


def optimizer_name(optimizer: torch.optim.Optimizer) -> str | None:
    """The name that records know an optimizer by; `None` if it has no adjoint here."""
    kind = type(optimizer)
    library, name = kind.__module__.partition(".")[0], kind.__name__
    if library == "bitsandbytes":  # of its names some tell how many bits the moments have, and whether they are paged
        plain = name.removeprefix("Paged").removesuffix("8bit").removesuffix("32bit")
        name = f"{plain}{getattr(getattr(optimizer, 'args', None), 'optim_bits', 32)}bit"
    if library in ("bitsandbytes", "torchao"):
        name = f"{library}.{name}"
    return name if name in KINDS and KINDS[name] in (None, kind) else None
