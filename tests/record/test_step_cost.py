"""What recording does in every step and at snapshots, counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_prune.record import TrajectoryCallback
from hf_prune.record.optimizer import RecordedOptimizer
from hf_prune.record.view import Plain
from hf_prune.trajectory import Trajectory
from tests.record.test_mixed_precision import ScaledTrainer
from tests.record.test_weights import EVERY_STEP
from tests.toys import Mlp, MlpKwargs, arguments, train, vectors


def test_the_scale_of_fp16_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda self: asked.append(1) or 1.0)
    callback = TrajectoryCallback(tmp_path / "t", **EVERY_STEP)
    args = arguments(tmp_path / "out", num_train_epochs=2)
    ScaledTrainer(MlpKwargs(), args, train_dataset=vectors(), callbacks=[callback]).train()
    steps = [step for step in Trajectory.open(tmp_path / "t").steps() if not step.skipped]
    assert len(steps) > 10
    assert {batch.scale for step in steps for batch in step.micro_batches} == {1.0}
    assert asked == []


class Counted(set[int]):
    """A set that counts how often it is compared."""

    times = 0

    def __le__(self, other: Any) -> bool:
        self.times += 1
        return super().__le__(other)


class Clipping(TrainerCallback):
    """Clips a single parameter between the Trainer's steps, and counts how often ids of parameters are compared."""

    def __init__(self, recording: TrajectoryCallback):
        self.recording, self.wanted = recording, Counted()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.recording._recording is not None
        listener = self.recording._recording._hooks.norm
        self.wanted = listener._wanted = Counted(listener._wanted)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            torch.nn.utils.clip_grad_norm_([next(kwargs["model"].parameters())], 1.0)


def test_ids_of_parameters_are_compared_when_others_are_clipped_and_not_in_every_step(tmp_path: Path) -> None:
    recording = TrajectoryCallback(tmp_path / "t")
    clipping = Clipping(recording)
    train(Mlp(), vectors(), tmp_path / "out", [recording, clipping])
    assert len(Trajectory.open(tmp_path / "t")) == 32
    assert clipping.wanted.times == 2


def test_the_count_of_updates_is_one_number_however_many_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.nn.Parameter(torch.zeros(2)) for _ in range(50)]
    optimizer = torch.optim.AdamW(tensors)
    for tensor in tensors:
        tensor.grad = torch.ones(2)
    optimizer.step()
    recorded = RecordedOptimizer(optimizer, optimizer, (), tuple(tensors), tuple(tensors), (), Plain(True))
    made, original = [], torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: made.append(1) or original(self))
    assert recorded.updates() == 1
    assert made == [1]


class Buffers(TrainerCallback):
    """Where snapshots are copied to, in every step."""

    def __init__(self, recording: TrajectoryCallback):
        self.recording = recording
        self.places: set[int] = set()
        self.bytes: set[int] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.recording._recording is not None
        writer = self.recording._recording._writers.snapshots
        assert writer is not None
        self.places |= {buffer.data_ptr() for buffer in writer._buffers.values()}
        self.bytes.add(sum(buffer.nbytes for buffer in writer._buffers.values()))


@pytest.mark.parametrize(
    ("optim", "dtype", "each"), [("adamw_torch", "float32", 8), ("adamw_torch", "bfloat16", 4), ("sgd", "float32", 4)]
)
def test_snapshots_take_the_memory_of_one_of_them(optim: str, dtype: str, each: int, tmp_path: Path) -> None:
    recording = TrajectoryCallback(tmp_path / "t", window=1.0, snapshots_per_epoch=2, snapshot_dtype=dtype)
    buffers = Buffers(recording)
    train(Mlp(), vectors(), tmp_path / "out", [recording, buffers], optim=optim)
    record = Trajectory.open(tmp_path / "t")
    assert len(record.snapshot_steps) == 9
    assert buffers.bytes == {each * record.manifest.n_parameters}
    assert len(buffers.places) == (1 if optim == "sgd" else 2)
