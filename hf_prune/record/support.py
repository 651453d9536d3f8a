"""What can be recorded. Everything else is refused before training starts, and the message says what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from hf_prune._core import compat, sharding
from hf_prune.errors import RecordingError
from hf_prune.optimizers import ADJOINTS, optimizer_name
from hf_prune.trajectory.manifest import Parameter

if TYPE_CHECKING:
    from hf_prune.record.hooks import Forward

_PROCESSES = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)
_PARALLEL = {"tp": "Tensor", "cp": "Context", "sp": "Sequence", "ep": "Expert", "pp": "Pipeline"}


_SIGN = "its step is the sign of a mean gradient, which has no derivative"
_AVERAGED = "the parameters that gradients are taken at are not those that the model is left with"
# Optimizers that the Trainer knows, and why they have no adjoint here.
_NO_ADJOINT = {
    "Adafactor": "its denominators are products of means over rows and columns, and its steps are clipped by them",
    "AdamW4bit": "its second moment is rounded to 4 bits, which leaves too little of it",
    "AdamWScheduleFree": _AVERAGED,
    "Lion": _SIGN,
    "Muon": "its step is an orthogonal matrix near the mean gradient, and not taken entry by entry",
    "RAdamScheduleFree": _AVERAGED,
    "SGDScheduleFree": _AVERAGED,
    "SignSGD": _SIGN,
}


def check_processes(args: TrainingArguments, state: Any, model: nn.Module) -> None:
    """
    Refuses torch's DataParallel, and what spreads parameters over processes in another way than FSDP2.

    Args:
        args (`TrainingArguments`): The Trainer's.
        state (`AcceleratorState`): Accelerate's.
        model (`nn.Module`): The model inside all wrappers, which may have been sharded when it was loaded.
    """
    kind = state.distributed_type
    if kind not in _PROCESSES and not (kind == DistributedType.FSDP and state.fsdp_plugin.fsdp_version == 2):
        name = "FSDP1" if kind == DistributedType.FSDP else kind.value
        raise RecordingError(
            f"Recording under {name} is not supported, because no process can be given whole parameters there; train "
            "with one process, with DDP (torchrun or accelerate launch), or with FSDP2 (fsdp_config={'version': 2})."
        )
    if args.n_gpu > 1:
        raise RecordingError(
            f"One process drives {args.n_gpu} GPUs (DataParallel), which hides the examples of each; start one "
            "process a GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    loaded = getattr(getattr(model, "config", None), "distributed_config", None)
    for place in (getattr(args, "parallelism_config", None), getattr(state, "parallelism_config", None), loaded):
        found = next((name for name in _PARALLEL if (getattr(place, f"{name}_size", None) or 1) > 1), None)
        if found is not None:
            raise RecordingError(
                f"{_PARALLEL[found]} parallelism ({found}_size) lets several processes work on the same examples and "
                "is not supported; train with DDP, or with FSDP2 alone."
            )


def check_quantized(model: nn.Module) -> None:
    """Refuses weights that are quantised in a way that cannot be read again."""
    method = compat.quantization(model)
    if method not in (None, "bitsandbytes"):
        raise RecordingError(
            f"The base model's weights are quantised by {method}, and influence can be computed through those of "
            "bitsandbytes; load it with BitsAndBytesConfig(load_in_4bit=True) or load_in_8bit=True, or without "
            "quantization."
        )


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's wrapper, if it is one that can be recorded."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if optimizer_name(inner) is None:
        kind = type(inner)
        raise RecordingError(
            f"The optimizer {kind.__module__}.{kind.__qualname__} cannot be recorded, because "
            f"{_NO_ADJOINT.get(kind.__name__, 'no adjoint of its update is known here')}; train with "
            "optim='adamw_torch_fused', 'adamw_torch' or 'sgd', or in less memory with 'adamw_8bit', "
            "'paged_adamw_8bit', 'paged_adamw_32bit' or 'adamw_torch_8bit'."
        )
    return inner


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Name and hyper-parameters as the manifest keeps them; learning rates are in the ledger."""
    name = optimizer_name(optimizer)
    assert name is not None, "inner_optimizer lets no other through"
    adjoint = ADJOINTS[name]
    groups = [
        {key: to_jsonable(value) for key, value in adjoint.describe(name, group).items()}
        for group in optimizer.param_groups
    ]
    return {"name": name, "groups": groups}


def recorded_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer, pattern: str | None
) -> list[tuple[Parameter, torch.Tensor]]:
    """The parameters that the optimizer trains and whose name the pattern matches, in the model's order."""
    groups = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    named = [(sharding.plain_name(name), p) for name, p in model.named_parameters()]
    trained = [(name, p) for name, p in named if p.requires_grad and id(p) in groups]
    if not trained:
        raise RecordingError("The optimizer trains no parameter of the model: there is nothing to record.")
    chosen = [(name, p) for name, p in trained if pattern is None or re.search(pattern, name)]
    if not chosen:
        names = ", ".join(name for name, _ in trained[:4])
        raise RecordingError(
            f"No trainable parameter matches parameters={pattern!r}; names look like: {names}. Use a regular "
            "expression that is found in some of them, or None for all."
        )
    return [(Parameter(name, tuple(p.shape), groups[id(p)]), p) for name, p in chosen]


def has_sampler(dataloader: Any) -> bool:
    """Whether this process's batch sampler says which rows its batches hold."""
    base = compat.base_dataloader(dataloader)
    if compat.is_dispatcher(dataloader) or isinstance(base.dataset, IterableDataset):
        return False
    if compat.is_stateful(dataloader):
        raise RecordingError(
            "use_stateful_dataloader=True is not supported, because such a dataloader skips batches out of sight; "
            "leave it out of accelerator_config."
        )
    if base.batch_sampler is None:
        raise RecordingError(
            "The training dataloader has no batch sampler (batch_size=None); build it with a batch_size or a "
            "batch_sampler."
        )
    return True


def check_id_column(args: TrainingArguments, reason: str) -> None:
    """Refuses a run that needs an id column which the Trainer is going to remove."""
    if args.remove_unused_columns:
        raise RecordingError(
            f"{reason}, so rows must carry their ids: use with_example_ids(dataset) from hf_prune.record, keep only "
            "the columns that the model takes (dataset.select_columns), and pass remove_unused_columns=False."
        )


def check_forward(forward: Forward, rows: int | None) -> None:
    """
    Refuses a forward pass that rows cannot be told apart in.

    Args:
        forward (`Forward`): The forward pass of a micro-batch.
        rows (`int`, *optional*): How many rows the micro-batch holds, where that is known.
    """
    if rows and forward.rows and forward.rows % rows and not forward.flattened:
        raise RecordingError(
            f"The model was given {forward.rows} sequences for a micro-batch of {rows} rows, so rows cannot be told "
            "apart (rows cut or laid end to end): train with a collator that makes one sequence of each row, or as "
            "many of each, or without TrajectoryCallback."
        )


def to_jsonable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, (tuple, list)):
        return [to_jsonable(entry) for entry in value]
    return value
