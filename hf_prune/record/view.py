"""Whole parameters, where each process may hold a part of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from hf_prune._core import compat, sharding
from hf_prune._core.processes import Processes
from hf_prune.errors import RecordingError
from hf_prune.optimizers import KINDS, optimizer_name


class View(Protocol):
    """How this process sees tensors of the run whole."""

    def whole(self, tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """
        The whole tensors, one after the other, in the main process, and nothing in the others: all processes go
        through it at the same time.
        """

    def norm(self, norm: torch.Tensor) -> torch.Tensor:
        """The norm of whole gradients, from what torch's function returned; all processes call this."""


@dataclass(frozen=True)
class Plain:
    """
    Every process holds all parameters.

    Args:
        main (`bool`): Whether this process is the main one.
    """

    main: bool

    def whole(self, tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        return iter(tensors if self.main else ())

    def norm(self, norm: torch.Tensor) -> torch.Tensor:
        return norm


@dataclass(frozen=True)
class Sharded:
    """
    FSDP2: every process holds a part of each parameter. One whole parameter at a time is gathered.

    Args:
        main (`bool`): Whether this process is the main one.
    """

    main: bool

    def whole(self, tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for tensor in tensors:
            gathered = sharding.whole(tensor.detach())
            if self.main:
                yield gathered

    def norm(self, norm: torch.Tensor) -> torch.Tensor:
        return sharding.whole(norm)


def view_of(model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes) -> View:
    """
    How the parameters of a model are seen whole.

    Args:
        model (`nn.Module`): The model inside all wrappers.
        optimizer (`torch.optim.Optimizer`): Torch's own.
        processes (`Processes`): Those of the run.

    Raises:
        [`RecordingError`]: if they are sharded in another way than by FSDP2 over all processes.
    """
    named = dict(model.named_parameters())
    sharded = {name: p for name, p in named.items() if sharding.is_sharded(p)}
    if not sharded:
        return Plain(processes.rank == 0)
    managed = sharding.fully_sharded(model)
    for name, p in sharded.items():
        if id(p) not in managed or not sharding.is_split_over(p, processes.world):
            raise RecordingError(
                f"The parameter {name} is spread over processes in another way than by FSDP2 over all of them, and "
                "cannot be recorded; train with DDP, or with FSDP2 alone (fsdp_config={'version': 2})."
            )
    trained = {name: p for name, p in named.items() if p.requires_grad}
    apart = next((name for name in trained if name not in sharded), None)
    if apart is None or not trained.keys() & sharded.keys():
        _check_sharded(model, optimizer, trained_sharded=apart is None)
        return Sharded(processes.rank == 0)
    raise RecordingError(
        f"FSDP2 shards some trained parameters and not {apart}, so the norm of their gradients is not that of one "
        "call; shard all of them (no ignored modules, and no evaluation between sharding and training), or none."
    )


def _check_sharded(model: nn.Module, optimizer: torch.optim.Optimizer, trained_sharded: bool) -> None:
    method = compat.quantization(model)
    if method is not None:
        raise RecordingError(
            f"Weights that are quantised by {method} and sharded by FSDP2 cannot be recorded; train with DDP, or load "
            "the base model without quantization."
        )
    name = optimizer_name(optimizer) or ""
    if trained_sharded and KINDS.get(name) is None:
        raise RecordingError(
            f"The state of {name} cannot be gathered under FSDP2; train with optim='adamw_torch_fused', 'adamw_torch' "
            "or 'sgd'."
        )
