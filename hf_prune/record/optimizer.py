"""The optimizer of a run under recording: what is read from it, and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_prune._core import sharding
from hf_prune._core.processes import Processes
from hf_prune.optimizers import ADJOINTS, OptimizerAdjoint, optimizer_name
from hf_prune.record import support
from hf_prune.record.pending import HostCopy
from hf_prune.record.pieces import OwnPieces
from hf_prune.record.view import View, view_of
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
        view (`View`): How they are seen whole.
    """

    prepared: Any
    inner: torch.optim.Optimizer
    parameters: tuple[Parameter, ...]
    tensors: tuple[torch.Tensor, ...]
    trainable: tuple[torch.Tensor, ...]
    others: tuple[torch.Tensor, ...]
    view: View

    @classmethod
    def of(cls, prepared: Any, model: nn.Module, pattern: str | None, processes: Processes) -> RecordedOptimizer:
        """
        Args:
            prepared (`Any`): The optimizer as accelerate prepared it.
            model (`nn.Module`): The model inside all wrappers.
            pattern (`str`, *optional*): Regular expression for the parameters to record.
            processes (`Processes`): Those of the run.

        Raises:
            [`RecordingError`]: if it is not supported, or trains no parameter that matches, or parameters are sharded
                in another way than by FSDP2.
        """
        inner = support.inner_optimizer(prepared)
        view = view_of(model, inner, processes)
        recorded = support.recorded_parameters(model, inner, pattern)
        names = {parameter.name for parameter, _ in recorded}
        return cls(
            prepared,
            inner,
            parameters=tuple(parameter for parameter, _ in recorded),
            tensors=tuple(tensor for _, tensor in recorded),
            trainable=tuple(p for p in model.parameters() if p.requires_grad),
            others=tuple(p for name, p in model.named_parameters() if sharding.plain_name(name) not in names),
            view=view,
        )

    def unrecorded(self, model: nn.Module) -> tuple[str, ...]:
        """The names of parameters that the model trains and that are not recorded."""
        known, trained = {id(tensor) for tensor in self.tensors}, {id(tensor) for tensor in self.trainable}
        return tuple(sharding.plain_name(name) for name, p in model.named_parameters() if id(p) in trained - known)

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

    def loss_scale(self) -> torch.Tensor | None:
        """The scaler's factor, where gradients are; its own `get_scale` waits for the device. `None` without one."""
        return None if self.scaler is None else self.scaler.scale(torch.ones((), device=self.tensors[0].device))

    def gradient_norm(self) -> torch.Tensor:
        """The 2-norm of the gradients as they are now."""
        return self.view.norm(torch.nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None]))

    def updates(self) -> int | None:
        """The optimizer's own count of its updates; `None` if it keeps none."""
        states = [self.inner.state.get(tensor, {}) for tensor in self.tensors]
        counts = [torch.as_tensor(state["step"]) for state in states if "step" in state]
        return int(torch.stack(counts).max()) if counts else None

    def vectors(self) -> Mapping[str, Iterator[torch.Tensor]]:
        """For each kind of a snapshot's vectors, the whole tensors that make it up, one after the other."""
        vectors = {PARAMETERS: self.view.whole(self.tensors)}
        if self.has_second_moment:
            vectors[SECOND_MOMENT] = self.view.whole(self._second_moment(tensor) for tensor in self.tensors)
        return vectors

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds its own part of all that is recorded."""
        return all(map(sharding.is_sharded, self.tensors))

    def own_pieces(self, rank: int) -> OwnPieces:
        """What this process, of this rank, holds of parameters that are sharded."""
        return OwnPieces.of(rank, self.parameters, self.tensors)

    def own_vectors(self) -> Mapping[str, Iterator[torch.Tensor]]:
        """What `vectors` has, of the parts that this process holds."""
        vectors = {PARAMETERS: _own(self.tensors)}
        if self.has_second_moment:
            vectors[SECOND_MOMENT] = _own(self._second_moment(tensor) for tensor in self.tensors)
        return vectors

    def samples(self) -> HostCopy:
        """A few entries of each parameter that is not recorded: they tell the model from another one."""
        return HostCopy(samples_of(self.view.whole(self.others)))

    def _second_moment(self, tensor: torch.Tensor) -> torch.Tensor:
        moment = self._adjoint.second_moment_of(self.inner.state.get(tensor, {}))
        return torch.zeros_like(tensor) if moment is None else moment


def _own(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    return (sharding.own_part(tensor.detach())[2] for tensor in tensors)
