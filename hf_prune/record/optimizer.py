"""The optimizer of a run under recording: what is read from it, and never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_prune.optimizers import ADJOINTS, OptimizerAdjoint, optimizer_name
from hf_prune.record import support
from hf_prune.record.pending import HostCopy
from hf_prune.trajectory.manifest import Parameter
from hf_prune.trajectory.snapshots import PARAMETERS, SECOND_MOMENT, samples_of


@dataclass(frozen=True)
class RecordedOptimizer:
    """
    Args:
        prepared (`Any`): As accelerate prepared it.
        inner (`torch.optim.Optimizer`): Torch's own.
        parameters (`tuple[Parameter, ...]`): The recorded parameters, in the order of the flat vector.
        tensors (`tuple[torch.Tensor, ...]`): Their tensors.
        trainable (`tuple[torch.Tensor, ...]`): All that the model trains, recorded or not.
        others (`tuple[torch.Tensor, ...]`): The model's parameters that are not recorded, frozen ones above all.
    """

    prepared: Any
    inner: torch.optim.Optimizer
    parameters: tuple[Parameter, ...]
    tensors: tuple[torch.Tensor, ...]
    trainable: tuple[torch.Tensor, ...]
    others: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, prepared: Any, model: nn.Module, pattern: str | None) -> RecordedOptimizer:
        """
        Args:
            prepared (`Any`): The optimizer as accelerate prepared it.
            model (`nn.Module`): The model inside all wrappers.
            pattern (`str`, *optional*): Regular expression for the parameters to record.

        Raises:
            [`RecordingError`]: if it is not supported, or trains no parameter that matches.
        """
        inner = support.inner_optimizer(prepared)
        recorded = support.recorded_parameters(model, inner, pattern)
        names = {parameter.name for parameter, _ in recorded}
        return cls(
            prepared,
            inner,
            parameters=tuple(parameter for parameter, _ in recorded),
            tensors=tuple(tensor for _, tensor in recorded),
            trainable=tuple(p for p in model.parameters() if p.requires_grad),
            others=tuple(p for name, p in model.named_parameters() if name not in names),
        )

    def unrecorded(self, model: nn.Module) -> tuple[str, ...]:
        """The names of parameters that the model trains and that are not recorded."""
        known, trained = {id(tensor) for tensor in self.tensors}, {id(tensor) for tensor in self.trainable}
        return tuple(name for name, p in model.named_parameters() if id(p) in trained - known)

    @property
    def has_second_moment(self) -> bool:
        return self._adjoint.has_second_moment

    @property
    def _adjoint(self) -> type[OptimizerAdjoint]:
        name = optimizer_name(self.inner)
        assert name is not None, "inner_optimizer lets no other through"
        return ADJOINTS[name]

    @property
    def learning_rates(self) -> list[float]:
        """One for each parameter group, as the next update will use them."""
        return [float(group["lr"]) for group in self.inner.param_groups]

    @property
    def step_was_skipped(self) -> bool:
        return bool(self.prepared.step_was_skipped)

    @property
    def scaler(self) -> Any:
        """The fp16 gradient scaler; `None` without one."""
        return getattr(self.prepared, "scaler", None)

    def gradient_norm(self) -> torch.Tensor:
        """The 2-norm of the gradients as they are now."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None])

    def updates(self) -> int | None:
        """The optimizer's own count of its updates; `None` if it keeps none."""
        states = [self.inner.state.get(tensor, {}) for tensor in self.tensors]
        return max((int(state["step"]) for state in states if "step" in state), default=None)

    def vectors(self) -> Mapping[str, Sequence[torch.Tensor]]:
        """For each kind of a snapshot's vectors, the tensors that make it up."""
        if not self.has_second_moment:
            return {PARAMETERS: self.tensors}
        return {PARAMETERS: self.tensors, SECOND_MOMENT: [self._second_moment(tensor) for tensor in self.tensors]}

    def samples(self) -> HostCopy:
        """A few entries of each parameter that is not recorded: they tell the model from another one."""
        return HostCopy(samples_of(self.others))

    def _second_moment(self, tensor: torch.Tensor) -> torch.Tensor:
        moment = self._adjoint.second_moment_of(self.inner.state.get(tensor, {}))
        return torch.zeros_like(tensor) if moment is None else moment
