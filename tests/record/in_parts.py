"""Run under torchrun: runs under FSDP2 whose snapshots are in parts. Usage: in_parts.py DIRECTORY [run|kill|resume]"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import Trainer, TrainerCallback, set_seed

from hf_prune.errors import RecordingError
from hf_prune.record import TrajectoryCallback, snapshot_writer
from hf_prune.record.snapshot_writer import SnapshotWriter
from tests import toys
from tests.record.sharded import BERT, allow_on_cpu
from tests.record.test_full_disk import files_end_at

ROWS, KILLED_AT, SAVED_AT = 37, 9, 5
SETTINGS: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 4, **BERT}
BY_OWNER = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "NO_WRAP"}}
SAVING = {"save_strategy": "steps", "save_steps": SAVED_AT}


class Witness(TrainerCallback):
    """What this process held in memory for snapshots, and the largest tensor that was gathered from all."""

    def __init__(self, recording: TrajectoryCallback):
        self.recording, self.held, self.gathered = recording, 0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        recording = self.recording._recording
        assert recording is not None
        writer = recording._writers.snapshots
        if writer is not None:
            self.held = sum(buffer.nbytes for buffer in writer._buffers.values())


def by_columns() -> nn.Module:
    """A model whose owner cuts matrices along their second dimension."""
    set_seed(1)
    model = toys.Mlp(hidden=16)
    fully_shard(model, shard_placement_fn=lambda p: Shard(p.dim() - 1) if p.shape[-1] % 2 == 0 else Shard(0))
    return model


def train(record: Path, out: Path, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    """A recorded run; what this process can tell of it."""
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    AcceleratorState._reset_state(True)
    set_seed(1)
    rows = toys.tokens(ROWS) if model is None else toys.vectors(ROWS)
    model = toys.bert(type_vocab_size=1) if model is None else model
    resume, room, told = options.pop("resume", None), options.pop("room", None), ""
    on_error = options.pop("on_error", "raise")
    recording = TrajectoryCallback(record, window=0.5, snapshots_per_epoch=2, on_error=on_error)
    witness = Witness(recording)
    args = toys.arguments(out, **SETTINGS | options)
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[recording, witness])
    original = DTensor.full_tensor

    def full_tensor(tensor: Any, **kwargs: Any) -> Any:
        whole = original(tensor, **kwargs)
        witness.gathered = max(witness.gathered, whole.numel())
        return whole

    DTensor.full_tensor = full_tensor  # type: ignore[method-assign]
    try:
        with nullcontext() if room is None else files_end_at(room):
            trainer.train(resume_from_checkpoint=resume)
    except RecordingError as error:
        told = str(error)
    finally:
        DTensor.full_tensor = original  # type: ignore[method-assign]
    return {"said": told, "held": witness.held, "gathered": witness.gathered, "steps": trainer.state.global_step}


def killed_in_a_write() -> None:
    """The second process is killed when the first one has written its part of a snapshot."""
    original = SnapshotWriter._write

    def write(self: Any, step: int, *arguments: Any) -> None:
        if step == KILLED_AT and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, step, *arguments)

    SnapshotWriter._write = write  # type: ignore[method-assign]


def main(directory: Path, what: str) -> None:
    allow_on_cpu()
    dist.init_process_group("gloo")
    rank, told = dist.get_rank(), {}
    if what == "run":
        told["whole"] = train(directory / "whole", directory / "out")
        told["whole columns"] = train(directory / "whole-columns", directory / "out", by_columns(), **BY_OWNER)
    snapshot_writer.LARGEST_GATHERED = 0
    if what == "run":
        told["parts"] = train(directory / "parts", directory / "out")
        told["columns"] = train(directory / "columns", directory / "out", by_columns(), **BY_OWNER)
        told["apart"] = train(directory / f"machine-{rank}" / "t", directory / "out")
        room = 20_000 if rank == 1 else None
        told["full"] = train(directory / "full", directory / "out", room=room)
        (directory / f"told-{rank}.json").write_text(json.dumps(told))
    else:
        killed = directory / "killed", directory / "killed-out"
        machine = directory / f"machine-{rank}" / "killed", directory / "machines-out"
        record, out = machine if what.endswith("machines") else killed
        if what.startswith("kill"):
            killed_in_a_write()
            train(record, out, **SAVING)
        else:
            train(record, out, **SAVING, resume=str(out / f"checkpoint-{SAVED_AT}"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
