"""FSDP2 on the CPU, which accelerate turns on for accelerators alone."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

BERT = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}}
LLAMA = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}


def allow_on_cpu() -> None:
    """Accelerate's own FSDP2 for two processes on the CPU: it asks for the kind of device, and gloo does all else."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def average_on_cpu() -> None:
    """Gloo has no averages, by which the Trainer shares gradients of adapters on a base that was loaded sharded."""
    original = dist.all_reduce

    def all_reduce(tensor: Any, op: Any = dist.ReduceOp.SUM, *args: Any, **kwargs: Any) -> Any:
        if op != dist.ReduceOp.AVG:
            return original(tensor, op, *args, **kwargs)
        original(tensor, dist.ReduceOp.SUM, *args, **kwargs)
        return tensor.div_(dist.get_world_size())

    dist.all_reduce = all_reduce
