"""Snapshots are what the optimizer left, lie where the window says, and are interpolated in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from hf_prune import UnsupportedError
from hf_prune.record import TrajectoryCallback
from hf_prune.record.schedule import planned_steps
from hf_prune.trajectory import Trajectory
from tests.toys import Mlp, arguments, bert, tokens, train, vectors


class Watcher(TrainerCallback):
    """Keeps parameters and second moments after every step."""

    def __init__(self, parameters: list[torch.Tensor]):
        self.parameters = parameters
        self.theta: dict[int, torch.Tensor] = {0: self.flat(parameters)}
        self.moment: dict[int, torch.Tensor] = {}

    @staticmethod
    def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"].optimizer
        self.theta[state.global_step] = self.flat(self.parameters)
        if "exp_avg_sq" in next(iter(optimizer.state.values()), {}):
            moments = [optimizer.state[p]["exp_avg_sq"] for p in self.parameters]
            self.moment[state.global_step] = self.flat(moments)


@pytest.mark.parametrize(
    ("total", "per_epoch", "window", "each", "steps"),
    [
        (40, 10, 0.5, 1, [20, 30, 40]),
        (40, 10, 1.0, 1, [0, 10, 20, 30, 40]),
        (45, 10, 0.5, 1, [22, 32, 42, 45]),
        (40, 10, 0.25, 2, [30, 35, 40]),
        (40, 10, 0.5, 0.5, [20, 40]),
        (3, 10, 0.5, 1, [1, 3]),
        (1, 1, 0.5, 1, [0, 1]),
    ],
)
def test_snapshots_are_spread_evenly_over_the_window(
    total: int, per_epoch: int, window: float, each: float, steps: list[int]
) -> None:
    assert planned_steps(total, per_epoch, window, each) == steps


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_snapshots_are_bitwise_the_parameters_after_their_step(optim: str, tmp_path: Path) -> None:
    model = bert()
    watcher = Watcher(list(model.parameters()))
    train(model, tokens(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t", window=1.0), watcher], optim=optim)
    trajectory = Trajectory.open(tmp_path / "t")
    assert trajectory.snapshot_steps == [0, 6, 12, 18, 24]
    for step in trajectory.snapshot_steps:
        assert torch.equal(trajectory.parameters_at(step), watcher.theta[step])
        if optim == "sgd":
            with pytest.raises(UnsupportedError, match="no second moment"):
                trajectory.second_moment_at(step)
        elif step:
            assert torch.equal(trajectory.second_moment_at(step), watcher.moment[step])


def test_between_snapshots_parameters_are_interpolated_linearly(tmp_path: Path) -> None:
    train(Mlp(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")])
    trajectory = Trajectory.open(tmp_path / "t")
    assert trajectory.window == (16, 32)
    left, right = trajectory.parameters_at(16), trajectory.parameters_at(24)
    torch.testing.assert_close(trajectory.parameters_at(18), 0.75 * left + 0.25 * right)
    assert not torch.equal(left, right)
    with pytest.raises(IndexError, match="16 to 32"):
        trajectory.parameters_at(15)
    with pytest.raises(IndexError, match="16 to 32"):
        trajectory.second_moment_at(33)


def test_parameters_pattern_limits_what_is_kept(tmp_path: Path) -> None:
    model = Mlp()
    train(model, vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t", parameters=r"net\.2\.")])
    trajectory = Trajectory.open(tmp_path / "t")
    assert [p.name for p in trajectory.manifest.parameters] == ["net.2.weight", "net.2.bias"]
    assert [p.shape for p in trajectory.manifest.parameters] == [(3, 16), (3,)]
    assert [p.group for p in trajectory.manifest.parameters] == [0, 1]  # weights decay, biases do not
    expected = torch.cat([p.detach().reshape(-1) for p in model.net[2].parameters()])
    assert torch.equal(trajectory.parameters_at(32), expected)


def test_bfloat16_halves_the_file_and_rounds(tmp_path: Path) -> None:
    model = Mlp(hidden=500)
    callbacks = [
        TrajectoryCallback(tmp_path / "full"),
        TrajectoryCallback(tmp_path / "half", snapshot_dtype="bfloat16"),
    ]
    train(model, vectors(), tmp_path / "out", callbacks)
    full, half = Trajectory.open(tmp_path / "full"), Trajectory.open(tmp_path / "half")
    torch.testing.assert_close(half.parameters_at(32), full.parameters_at(32), rtol=2**-7, atol=0)
    assert half.steps() == full.steps()
    name = "snapshots/step-00000032.safetensors"
    assert (tmp_path / "half" / name).stat().st_size < 0.55 * (tmp_path / "full" / name).stat().st_size


def test_an_early_stop_takes_the_last_snapshot_where_training_ended(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 21

    model = Mlp()
    train(model, vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t"), Stop()])
    trajectory = Trajectory.open(tmp_path / "t")
    assert trajectory.window == (12, 21)  # the snapshot nearest to half of the steps made
    assert trajectory.manifest.complete
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(trajectory.parameters_at(21), expected)


def test_loading_the_best_model_does_not_get_into_the_last_snapshot(tmp_path: Path) -> None:
    model = Mlp()
    watcher = Watcher(list(model.parameters()))
    args = arguments(
        tmp_path / "out",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        learning_rate=3.0,
        num_train_epochs=12,
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=vectors(),
        eval_dataset=vectors(seed=1),
        callbacks=[TrajectoryCallback(tmp_path / "t", 1.0, 0.01), watcher, EarlyStoppingCallback(2)],
    )
    trainer.train()
    last = trainer.state.global_step
    trajectory = Trajectory.open(tmp_path / "t")
    assert last < 96
    assert trajectory.window[1] == last
    assert torch.equal(trajectory.parameters_at(last), watcher.theta[last])
    assert not torch.equal(Watcher.flat(list(model.parameters())), watcher.theta[last])


def test_a_warm_optimizer_counts_its_earlier_updates(tmp_path: Path) -> None:
    model = Mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    for name in ("first", "second"):
        args = arguments(tmp_path / "out", num_train_epochs=1)
        callback = TrajectoryCallback(tmp_path / name)
        Trainer(model, args, train_dataset=vectors(), optimizers=(optimizer, scheduler), callbacks=[callback]).train()
    assert Trajectory.open(tmp_path / "first").updates_before(3) == 3
    assert Trajectory.open(tmp_path / "second").updates_before(3) == 11
