"""With an fp16 gradient scaler, factors are those of the unscaled loss, and skipped steps are marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import Trajectory
from tests.record.test_weights import EVERY_STEP
from tests.toys import MlpKwargs, arguments, vectors


class ScaledTrainer(Trainer):
    """Trains in float32 under a real gradient scaler whose first scales overflow."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-30)
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_skipped_steps_are_marked_and_factors_are_unscaled(optim: str, tmp_path: Path) -> None:
    callback = TrajectoryCallback(tmp_path / "t", **EVERY_STEP)
    args = arguments(tmp_path / "out", optim=optim, num_train_epochs=2)
    ScaledTrainer(MlpKwargs(), args, train_dataset=vectors(), callbacks=[callback]).train()
    trajectory = Trajectory.open(tmp_path / "t")
    steps = trajectory.steps()
    skipped = [step.index for step in steps if step.skipped]
    assert skipped
    assert len(skipped) < 5
    for step in steps:
        moved = not torch.equal(trajectory.parameters_at(step.index), trajectory.parameters_at(step.index + 1))
        assert moved != step.skipped
        assert trajectory.updates_before(step.index) == step.index - sum(s < step.index for s in skipped)
        if not step.skipped:
            assert [batch.scale for batch in step.micro_batches] == [1.0]
            assert step.grad_norm < 100
