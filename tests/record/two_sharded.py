"""Run under torchrun: the same runs under DDP and under FSDP2. Usage: two_sharded.py DIRECTORY"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torchao.optim import AdamW8bit
from transformers import LlamaForSequenceClassification, PreTrainedModel, Trainer, default_data_collator, set_seed

from hf_prune import add_influence
from hf_prune._core.processes import Processes
from hf_prune.errors import RecordingError, UnsupportedError
from hf_prune.record import TrajectoryCallback
from hf_prune.record.support import check_processes
from hf_prune.record.view import view_of
from tests import toys
from tests.record.sharded import BERT, LLAMA, allow_on_cpu, average_on_cpu
from tests.record.test_full_disk import files_end_at

ROWS = 37
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "eval_strategy": "epoch",  # leaves some parameters unsharded until the next step
}
SAVED = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "no"}
UNWRAPPED = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "NO_WRAP"}}
RECORDING: dict[str, Any] = {"window": 1.0, "snapshots_per_epoch": 2, "row_statistics": True}
# Each sharded run, and the run under DDP that it has to be equal to.
PAIRS = {
    "bert by accelerate": "bert",
    "bert by its owner": "bert",
    "part of bert": "bert",  # with activation checkpointing, which renames parameters
    "adapter by accelerate": "adapter",
    "llama when loaded": "llama",
    "adapter on what was loaded": "adapter",
}


def loaded_sharded() -> bool:
    """Whether this version of transformers shards models when it loads them."""
    return hasattr(PreTrainedModel, "is_distributed_loading_by_transformers")


def bert() -> nn.Module:
    set_seed(1)
    return toys.bert()


def adapter(base: nn.Module) -> nn.Module:
    set_seed(2)
    made = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:  # zeros would let no gradient through to the other factor
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def llama(directory: Path, **kwargs: Any) -> nn.Module:
    set_seed(3)
    model = toys.llama()
    if dist.is_initialized() and dist.get_rank() == 0:
        model.save_pretrained(directory / "base")
    if not kwargs:
        return model
    dist.barrier()
    return LlamaForSequenceClassification.from_pretrained(directory / "base", **kwargs)


def owned() -> nn.Module:
    model = bert()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    return model


def run(name: str, directory: Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The model of a run, the Trainer's arguments and the callback's."""
    if name == "bert":
        return bert(), {}, {}
    if name == "llama":
        return llama(directory), {}, {}
    if name == "adapter":
        return adapter(llama(directory)), {}, {}
    if name == "bert by accelerate":
        return bert(), BERT, {}
    if name == "part of bert":
        checkpointed = {"fsdp_config": BERT["fsdp_config"] | {"activation_checkpointing": True}}
        return bert(), BERT | checkpointed, {"parameters": "classifier|layer.1"}
    if name == "bert by its owner":
        return owned(), UNWRAPPED, {}
    if name == "adapter by accelerate":
        return adapter(llama(directory)), LLAMA, {}
    from transformers.distributed import DistributedConfig

    model = llama(directory, distributed_config=DistributedConfig(fsdp_size=2))
    return (model if name == "llama when loaded" else adapter(model)), {}, {}


def train(name: str, directory: Path) -> None:
    begin()
    model, settings, recording = run(name, directory)
    place = directory / name.replace(" ", "-")
    args = toys.arguments(place / "out", **SETTINGS | settings)
    callback = TrajectoryCallback(place / "t", **RECORDING | recording)
    rows = {"train_dataset": toys.tokens(ROWS), "eval_dataset": toys.tokens(8, seed=3)}
    trainer = Trainer(model, args, **rows, callbacks=[callback])
    trainer.train()
    assert any(isinstance(p, DTensor) for p in trainer.model.parameters()) == (name in PAIRS)


def interrupted(directory: Path) -> None:
    """A run that goes on from its checkpoint in the middle of the second epoch."""
    for resume in (None, str(directory / "resumed" / "out" / "checkpoint-4")):
        begin()
        args = toys.arguments(directory / "resumed" / "out", **SETTINGS | BERT | SAVED)
        callback = TrajectoryCallback(directory / "resumed" / "t", **RECORDING)
        trainer = Trainer(bert(), args, train_dataset=toys.tokens(ROWS), callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)


FULL = (
    ("main raises", 0, "raise", 60_000),
    ("other stops", 1, "stop-recording", 700),
)


def ended(trainer: Trainer) -> str:
    """Trains; returns what recording said where it ended training, else nothing."""
    try:
        trainer.train()
    except RecordingError as error:
        return str(error)
    return ""


def tell(place: Path, said: str, trainer: Trainer) -> None:
    """Leaves what this process has to say for the test."""
    told = {"said": said, "steps": trainer.state.global_step}
    (place / f"told-{dist.get_rank()}.json").write_text(json.dumps(told))


def on_a_full_disk(directory: Path) -> None:
    """The main process alone may not write its snapshots, or the other one not go on with its ledger."""
    for name, rank, on_error, room in FULL:
        begin()
        place = directory / f"full-{name}"
        callback = TrajectoryCallback(place / "t", **RECORDING, on_error=on_error)
        args = toys.arguments(place / "out", **SETTINGS | UNWRAPPED | {"eval_strategy": "no"})
        trainer = Trainer(toys.Mlp(hidden=1000), args, train_dataset=toys.vectors(ROWS), callbacks=[callback])
        with files_end_at(room) if dist.get_rank() == rank else nullcontext():
            said = ended(trainer)
        tell(place, said, trainer)


class WithoutNorm(Trainer):
    """As in versions that take no norm where nothing is clipped: recording takes it, and all processes with it."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return grad_norm


def failing_within_a_step(directory: Path) -> None:
    """The second process cannot tell rows apart in the second step, before the norm of its gradient is taken."""
    begin()
    place, batches = directory / "failing", 0

    def collator(rows: list[Any]) -> Any:
        nonlocal batches
        batches += 1
        lost = dist.get_rank() == 1 and batches == 3
        return default_data_collator(rows[1:] if lost else rows)

    args = toys.arguments(place / "out", **SETTINGS | UNWRAPPED | {"eval_strategy": "no", "max_grad_norm": 0.0})
    callback = TrajectoryCallback(place / "t", window=1.0, snapshots_per_epoch=1)
    rows = {"train_dataset": toys.vectors(ROWS), "data_collator": collator}
    trainer = WithoutNorm(toys.Mlp(), args, **rows, callbacks=[callback])
    tell(place, ended(trainer), trainer)


def parallel_by_hand() -> nn.Module:
    """Tensor parallelism that no configuration tells of."""
    model, mesh = toys.Mlp(hidden=16), init_device_mesh("cpu", (2,))
    return parallelize_module(model, mesh, {"net.0": ColwiseParallel(), "net.2": RowwiseParallel()})


def sharded_in_part() -> nn.Module:
    model = toys.Mlp()
    return fully_shard(model, ignored_params=set(model.net[0].parameters()))


REFUSED: dict[str, Any] = {
    "parallel by hand": (parallel_by_hand, torch.optim.SGD),
    "sharded in part": (sharded_in_part, torch.optim.SGD),
    "quantized optimizer": (lambda: fully_shard(toys.Mlp()), AdamW8bit),
}


def refused(directory: Path) -> None:
    """What each process says of parameters that nothing whole can be made of."""
    said = {}
    for name, (make, optimizer) in REFUSED.items():
        model = make()
        try:
            view_of(model, optimizer(model.parameters()), Processes.current())
        except RecordingError as error:
            said[name] = str(error)
    begin()
    if loaded_sharded():
        from transformers.distributed import DistributedConfig

        model = llama(directory, distributed_config=DistributedConfig(tp_size=2))
        try:
            check_processes(toys.arguments(directory / "out"), Accelerator().state, model)
        except RecordingError as error:
            said["tensor parallelism when loaded"] = str(error)
    begin()
    try:
        add_influence(toys.tokens(ROWS), directory / "bert" / "t", model=owned(), directions=2)
    except UnsupportedError as error:
        said["scoring"] = str(error)
    (directory / f"refused-{dist.get_rank()}.json").write_text(json.dumps(said))


def begin() -> None:
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    AcceleratorState._reset_state(True)


def main(directory: Path) -> None:
    allow_on_cpu()
    average_on_cpu()
    dist.init_process_group("gloo")
    names = [name for name in PAIRS if loaded_sharded() or "loaded" not in name]
    for name in dict.fromkeys([*(PAIRS[name] for name in names), *names]):
        train(name, directory)
    interrupted(directory)
    on_a_full_disk(directory)
    failing_within_a_step(directory)
    refused(directory)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
