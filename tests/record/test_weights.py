"""Ids, measured factors and recorded norms are enough to make the Trainer's own step again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_prune.record import TrajectoryCallback
from hf_prune.record.snapshot_writer import SnapshotWriter
from hf_prune.trajectory import Step, Trajectory
from tests.toys import Mlp, MlpKwargs, MlpSum, arguments, bert, tokens, train, vectors

HEADS = {"without": Mlp, "ignores": MlpKwargs, "uses": MlpSum}
EVERY_STEP = {"window": 1.0, "snapshots_per_epoch": 10_000}


def step_again(trajectory: Trajectory, step: Step, model: nn.Module, dataset: Dataset) -> tuple[torch.Tensor, float]:
    """The parameters after a plain SGD step made from the record alone, and the gradient's norm."""
    theta = trajectory.parameters_at(step.index)
    nn.utils.vector_to_parameters(theta, model.parameters())
    model.zero_grad()
    for batch in step.micro_batches:
        inputs: dict[str, Any] = {name: torch.tensor(values) for name, values in dataset[list(batch.ids)].items()}
        if batch.num_items is not None:
            inputs["num_items_in_batch"] = batch.num_items
        assert batch.scale is not None
        (model(**inputs)["loss"] * batch.scale).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    limit = trajectory.manifest.max_grad_norm
    clip = min(1.0, limit / (step.grad_norm + 1e-6)) if limit else 1.0
    return theta - step.learning_rates[0] * clip * gradient, float(gradient.norm())


def assert_steps_come_out_the_same(directory: Path, model: nn.Module, dataset: Dataset) -> None:
    trajectory = Trajectory.open(directory)
    for step in trajectory.steps():
        after, norm = step_again(trajectory, step, model, dataset)
        torch.testing.assert_close(after, trajectory.parameters_at(step.index + 1), rtol=1e-5, atol=1e-6)
        assert norm == pytest.approx(step.grad_norm, rel=1e-4)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("head", list(HEADS))
def test_recorded_factors_reproduce_the_step(
    head: str, accumulation: int, max_grad_norm: float, tmp_path: Path
) -> None:
    data = vectors(40)
    settings = {"gradient_accumulation_steps": accumulation, "max_grad_norm": max_grad_norm, "learning_rate": 0.1}
    callback = TrajectoryCallback(tmp_path / "t", **EVERY_STEP)
    train(HEADS[head](), data, tmp_path / "out", [callback], optim="sgd", num_train_epochs=2, **settings)
    assert_steps_come_out_the_same(tmp_path / "t", HEADS[head](), data)


def test_factors_hold_with_gradient_checkpointing(tmp_path: Path) -> None:
    data = tokens(24)
    callback = TrajectoryCallback(tmp_path / "t", **EVERY_STEP)
    newer = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if newer else "gradient_checkpointing"
    train(
        bert(),
        data,
        tmp_path / "out",
        [callback],
        optim="sgd",
        num_train_epochs=1,
        gradient_accumulation_steps=2,
        **{name: True},
    )
    assert_steps_come_out_the_same(tmp_path / "t", bert().train(), data)


@pytest.mark.parametrize("setting", ["label smoothing", "loss function"])
def test_a_loss_that_is_not_the_models_is_recorded_as_custom(setting: str, tmp_path: Path) -> None:
    def loss(outputs: dict[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs["logits"], labels)

    smooth = setting == "label smoothing"
    args = arguments(tmp_path / "out", num_train_epochs=1, label_smoothing_factor=0.1 if smooth else 0.0)
    Trainer(
        bert(),
        args,
        train_dataset=tokens(),
        compute_loss_func=None if smooth else loss,
        callbacks=[TrajectoryCallback(tmp_path / "t")],
    ).train()
    trajectory = Trajectory.open(tmp_path / "t")
    assert trajectory.manifest.loss == "custom"
    assert {batch.scale for step in trajectory.steps() for batch in step.micro_batches} == {None}


def test_recording_leaves_training_bitwise_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = MlpSum(), MlpSum()
    second.load_state_dict(first.state_dict())
    train(first, vectors(), tmp_path / "a")
    train(second, vectors(), tmp_path / "b", [TrajectoryCallback(tmp_path / "t")])
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_all_hooks_are_gone_after_training(tmp_path: Path) -> None:
    clip = nn.utils.clip_grad_norm_
    trainer = train(Mlp(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=1)
    assert nn.utils.clip_grad_norm_ is clip
    assert not trainer.model._forward_hooks
    assert not trainer.model._forward_pre_hooks


def test_all_hooks_are_gone_after_a_start_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("No space left on device")

    clip, model = nn.utils.clip_grad_norm_, Mlp()
    monkeypatch.setattr(SnapshotWriter, "take", fail)
    with pytest.raises(OSError, match="No space left"):
        train(model, vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t", window=1.0)])
    assert nn.utils.clip_grad_norm_ is clip
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
