"""The adjoint of an optimizer against central differences of the optimizer itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_prune.optimizers import ADJOINTS, GroupLayout, OptimizerAdjoint, adjoint_for, optimizer_name
from hf_prune.record.support import describe_optimizer, inner_optimizer

SIZES = (5, 3)
"""Length of the one parameter in each of the two groups."""
SHIFT = 1e-4
LEARNING_RATE = 0.1

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def check_adjoint(make: MakeOptimizer, *, steps: int = 8, tolerance: float = 1e-6) -> None:
    """
    Checks that the adjoint of an optimizer is the derivative of what the optimizer does.

    A run in float64 minimises a random quadratic whose curvature and gradient change at each step, with a learning
    rate that changes too. The gradient of each step is shifted both ways, and where the parameters end is compared
    with what the adjoint says. A second moment (`exp_avg_sq` in the optimizer's state) is held at its values in the
    run that is not shifted, as influence holds it.

    Args:
        make (`Callable[[list[dict]], torch.optim.Optimizer]`):
            Makes the optimizer of two parameter groups, such as
            `lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)`.
        steps (`int`, *optional*, defaults to 8):
            Optimizer steps of the run.
        tolerance (`float`, *optional*, defaults to 1e-6):
            Relative error that passes.

    Raises:
        `AssertionError`: if the two differ.
        [`RecordingError`], [`UnsupportedError`]: if the optimizer cannot be recorded, or has no adjoint.
    """
    run = _Run(make, steps)
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, sum(SIZES), dtype=torch.float64, generator=generator)
    slopes = _swept(run, queries)
    for t in range(steps):
        direction = torch.randn(sum(SIZES), dtype=torch.float64, generator=generator)
        ends = [_Run(make, steps, shifts={t: sign * SHIFT * direction}, held=run.moments).end for sign in (1, -1)]
        truth = queries @ (ends[0] - ends[1]) / (2 * SHIFT)
        error = float((slopes[t] @ direction - truth).norm() / truth.norm())
        if not error <= tolerance:
            raise AssertionError(
                f"The adjoint of {type(run.optimizer).__name__} is not its derivative: at step {t} of {steps} it "
                f"differs from central differences by {error:.1e} of their length, and {tolerance:.0e} is allowed."
            )


@dataclass
class _Run:
    """A training run on quadratics, with everything kept that a sweep needs."""

    make: MakeOptimizer
    steps: int
    shifts: dict[int, torch.Tensor] = field(default_factory=dict)
    held: list[torch.Tensor | None] | None = None
    moments: list[torch.Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        size = sum(SIZES)
        self.curvatures = [0.3 * (A + A.T) for A in torch.randn(self.steps, size, size, generator=generator).double()]
        offsets = torch.randn(self.steps, size, generator=generator).double()
        self.tensors = [torch.nn.Parameter(torch.randn(n, generator=generator).double()) for n in SIZES]
        self.optimizer = self.make([{"params": [tensor]} for tensor in self.tensors])
        self.rates = [LEARNING_RATE * (1 - t / (2 * self.steps)) for t in range(self.steps)]
        for t in range(self.steps):
            gradient = self.curvatures[t] @ self.end + offsets[t] + self.shifts.get(t, 0.0)
            for tensor, part in zip(self.tensors, gradient.split(SIZES), strict=True):
                tensor.grad = part.clone()
            for group in self.optimizer.param_groups:
                group["lr"] = self.rates[t]
            if self.held is not None and self.held[t] is not None:
                self._hold(self.held[t].split(SIZES))  # type: ignore[union-attr]
            self.optimizer.step()
            self.moments.append(self._moment())

    @property
    def end(self) -> torch.Tensor:
        return torch.cat([tensor.detach() for tensor in self.tensors])

    def _moment(self) -> torch.Tensor | None:
        adjoint = ADJOINTS.get(optimizer_name(self.optimizer) or "", OptimizerAdjoint)
        found = [adjoint.second_moment_of(self.optimizer.state.get(tensor, {})) for tensor in self.tensors]
        return (
            torch.cat([moment.detach() for moment in found if moment is not None])
            if any(moment is not None for moment in found)
            else None
        )

    def _hold(self, wanted: tuple[torch.Tensor, ...]) -> None:
        """Sets the second moments so that the next step finds those that are wanted, whatever its gradient is."""
        if not self.optimizer.state:
            with self._undone():
                self.optimizer.step()
            for tensor in self.tensors:  # what the optimizer makes of its state in the first step, emptied
                self.optimizer.state[tensor] = {name: torch.zeros_like(v) for name, v in self._first[tensor].items()}
        with self._undone():
            for tensor in self.tensors:
                self.optimizer.state[tensor]["exp_avg_sq"].zero_()
            self.optimizer.step()
            added = [self.optimizer.state[tensor]["exp_avg_sq"].clone() for tensor in self.tensors]
        for group, tensor, target, more in zip(self.optimizer.param_groups, self.tensors, wanted, added, strict=True):
            state, largest = self.optimizer.state[tensor], "max_exp_avg_sq" in self.optimizer.state[tensor]
            state["exp_avg_sq"].copy_(((0.0 if largest else target) - more) / group["betas"][1])
            if largest:
                state["max_exp_avg_sq"].copy_(target)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Takes back what the block does to parameters and state."""
        before = [tensor.detach().clone() for tensor in self.tensors]
        state = {tensor: {k: v.clone() for k, v in values.items()} for tensor, values in self.optimizer.state.items()}
        yield
        self._first = dict(self.optimizer.state)
        self.optimizer.state.clear()
        self.optimizer.state.update(state)
        for tensor, values in zip(self.tensors, before, strict=True):
            tensor.data.copy_(values)


def _swept(run: _Run, queries: torch.Tensor) -> list[torch.Tensor]:
    """For each step, the derivative `(k, p)` of the queries at the end of the run in the step's gradient."""
    optimizer = describe_optimizer(inner_optimizer(run.optimizer))
    groups = list(range(len(SIZES)))
    adjoint, layout = adjoint_for(optimizer, list(SIZES), groups), GroupLayout(list(SIZES), groups)
    A, M = adjoint.start(queries.clone())
    slopes = []
    for t in reversed(range(run.steps)):
        rates, moment = (run.rates[t],) * len(SIZES), run.moments[t]
        divided_by = None if moment is None else adjoint.denominator(optimizer["groups"], layout, moment, t)
        C = adjoint.step_adjoint_(A, M, rates, divided_by, t)
        slopes.append(C.clone())
        adjoint.decay_adjoint_(A, C, rates)
        A = A + C @ run.curvatures[t]
    return slopes[::-1]
