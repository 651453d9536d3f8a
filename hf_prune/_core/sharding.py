"""
What torch does to a model that it spreads over processes (FSDP2), or whose modules it wraps.

Its classes are looked for among the modules that somebody imported, so that plain runs do not wait for them.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process may hold a part of the tensor alone; there are none where nobody imported their class."""
    return isinstance(tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with all its parts; of a sharded one all its processes have to call this, in the same order."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def own_part(tensor: torch.Tensor) -> tuple[int, int, torch.Tensor]:
    """
    The part of a sharded tensor, cut as [`is_split_over`] says, that this process answers for: the dimension that the
    tensor is cut along, where the part begins there, and the part; it is empty in a process that holds a copy only.
    """
    sharded: Any = tensor
    *copies, place = sharded.device_mesh.get_coordinate()
    dim, part = sharded.placements[-1].dim, sharded.to_local()
    length = sharded.shape[dim]
    start = min(place * -(-length // sharded.device_mesh.size(-1)), length)
    return dim, start, part.narrow(dim, 0, 0) if any(copies) else part


def is_split_over(tensor: torch.Tensor, processes: int) -> bool:
    """Whether a sharded tensor is cut once, over the last dimension of a mesh of that many processes, as by FSDP2."""
    sharded: Any = tensor
    *before, last = sharded.placements
    return sharded.device_mesh.size() == processes and last.is_shard() and all(p.is_replicate() for p in before)


def fully_sharded(model: nn.Module) -> set[int]:
    """The `id` of each parameter that FSDP2 (`fully_shard`) takes care of."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    return {id(p) for part in model.modules() if isinstance(part, kind) for p in part.parameters()}


def class_of(model: nn.Module) -> type:
    """The model's class, as it was before `fully_shard` derived one of its own from it."""
    found = type(model)
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return found.__bases__[1] if kind is not None and kind in found.__bases__ else found


# What wrappers inside a model put into the names of its parameters.
_WRAPPERS = re.compile(r"(^|\.)(_checkpoint_wrapped_module|_orig_mod)(?=\.)")


def plain_name(name: str) -> str:
    """The name of a parameter without the wrappers of activation checkpointing and `torch.compile` around modules."""
    return _WRAPPERS.sub("", name).removeprefix(".")
