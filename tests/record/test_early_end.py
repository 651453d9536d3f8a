"""A run that ends before its plan leaves a window of the steps that it made, at bounded disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, set_seed

from hf_prune import Trajectory, TrajectoryCallback, add_influence
from hf_prune.record.schedule import Snapshots, due_steps, most_at_once, planned_steps
from hf_prune.trajectory.files import snapshot_path
from tests import toys
from tests.record.test_resume import CHECKPOINTS, interrupted
from tests.record.truth import CASES

BEST = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "lr_scheduler_type": "constant",
}


class StopAt(TrainerCallback):
    """Ends training after `step` steps, as Ctrl-C in a notebook's button or a time limit does."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


class CountFiles(TrainerCallback):
    """The largest number of snapshots on disk after any step."""

    def __init__(self, directory: Path):
        self.directory, self.most = directory, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.most = max(self.most, len(list(self.directory.glob("step-*.safetensors"))))


def trained(place: Path, callbacks: list[Any], record: dict[str, Any] | None = None, **overrides: Any) -> Trainer:
    set_seed(0)
    args = toys.arguments(place / "out", **({"lr_scheduler_type": "constant"} | overrides))
    trainer = Trainer(
        toys.Mlp(),
        args,
        train_dataset=toys.vectors(64, noise=2.0),
        eval_dataset=toys.vectors(32, seed=1, noise=2.0),
        callbacks=[TrajectoryCallback(place / "t", **(record or {})), *callbacks],
    )
    trainer.train()
    return trainer


def scores(trainer: Trainer, place: Path, **settings: Any) -> np.ndarray:
    scored = add_influence(
        trainer.train_dataset,
        place / "t",
        model=trainer.model,
        eval_dataset=trainer.eval_dataset,
        directions=8,
        **settings,
    )
    return np.column_stack([np.array(scored["influence"]), scored["influence_eval_loss"]])


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_a_run_that_stops_early_is_scored_as_one_that_was_planned_so_short(engine: str, tmp_path: Path) -> None:
    stopped = trained(tmp_path / "stopped", [StopAt(32)], num_train_epochs=50)
    planned = trained(tmp_path / "planned", [], num_train_epochs=4)
    found, expected = (Trajectory.open(tmp_path / name / "t") for name in ("stopped", "planned"))
    assert found.snapshot_steps == expected.snapshot_steps == [16, 24, 32]
    assert found.manifest.window_start == 16
    assert found.manifest.complete
    left = scores(stopped, tmp_path / "stopped", engine=engine)
    right = scores(planned, tmp_path / "planned", engine=engine)
    assert np.abs(right).max() > 0
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("step", [1, 2, 5, 13, 37, 61, 200, 333, 399])
def test_wherever_a_run_stops_there_is_a_window_of_the_steps_made(step: int, tmp_path: Path) -> None:
    trainer = trained(tmp_path, [StopAt(step)], num_train_epochs=50)
    record = Trajectory.open(tmp_path / "t")
    first, last = record.window
    assert last == step == record.manifest.last_step
    assert record.manifest.window_start == first
    assert abs(first - step / 2) <= 4 + 1  # half an epoch away from half of the steps, at most
    assert np.isfinite(scores(trainer, tmp_path, curvature="none")).all()


def test_a_window_that_ends_elsewhere_is_close_to_the_planned_one(tmp_path: Path) -> None:
    """Stopped after 5 of 50 epochs, the snapshots lie half an epoch away from where a plan for 5 puts them."""
    stopped = trained(tmp_path / "stopped", [StopAt(40)], num_train_epochs=50)
    planned = trained(tmp_path / "planned", [], num_train_epochs=5)
    assert Trajectory.open(tmp_path / "stopped" / "t").snapshot_steps == [16, 24, 32, 40]
    assert Trajectory.open(tmp_path / "planned" / "t").snapshot_steps == [20, 28, 36, 40]
    left = scores(stopped, tmp_path / "stopped", mode="visits")
    right = scores(planned, tmp_path / "planned", mode="visits")
    share = np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert np.corrcoef(np.log(np.linalg.norm(left, axis=1)), np.log(np.linalg.norm(right, axis=1)))[0, 1] > 0.9
    assert 0.8 < np.median(share) < 1.5


def test_early_stopping_keeps_the_windows_of_the_best_and_of_the_last_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        trainer = trained(
            tmp_path,
            [EarlyStoppingCallback(3)],
            num_train_epochs=50,
            learning_rate=0.03,
            **(BEST | {"save_total_limit": 1}),
        )
    assert "may stop early" in caplog.text
    best, last = trainer.state.best_global_step, trainer.state.global_step
    assert 0 < best < last < trainer.state.max_steps
    record = Trajectory.open(tmp_path / "t")
    assert record.window[1] == last
    assert record.until(best).window[1] == best
    assert record.until(best).window[0] <= best / 2 + 4


def test_a_run_without_early_stopping_is_not_warned_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        trained(tmp_path, [], num_train_epochs=2)
    assert "stop early" not in caplog.text


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("window", [0.5, 0.1])
def test_snapshots_on_disk_stay_within_the_bound(window: float, best: bool, tmp_path: Path) -> None:
    counted = CountFiles(tmp_path / "t" / "snapshots")
    record = {"window": window, "snapshots_per_epoch": 2}
    trainer = trained(tmp_path, [counted], record, num_train_epochs=30, **(BEST if best else {}))
    plan = (trainer.state.max_steps, 8, window, 2)
    bound = most_at_once(due_steps(*plan), window, best)
    assert counted.most <= bound <= (2 if best else 1) * (len(planned_steps(*plan)) + 2) + 3
    if not best:
        assert Trajectory.open(tmp_path / "t").snapshot_steps == planned_steps(*plan)
        assert len(list((tmp_path / "t" / "snapshots").iterdir())) == len(planned_steps(*plan))


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 400), st.integers(1, 60), st.floats(0.02, 1.0), st.sampled_from([0.5, 1, 3]), st.integers(0, 10**6)
)
def test_the_bound_and_the_window_hold_for_any_plan(
    total: int, per_epoch: int, window: float, each: float, seed: int
) -> None:
    """Also where epochs end between due steps and best checkpoints come at any step."""
    plan = (total, per_epoch, window, each)
    due = due_steps(*plan)
    rng = np.random.default_rng(seed)
    best_steps = set(rng.choice(total, size=min(total, 5), replace=False).tolist())
    there, track = Snapshots(window, set(due)), bool(seed % 2)
    end = int(rng.integers(1, total + 1))
    for step in range(end + 1):
        if step in due or step == end or (track and step and step % per_epoch == 0):
            before = len(there.steps)
            there.add(step)
            assert before + 1 <= most_at_once(due, window, track)
        if track and step in best_steps:
            there.best = step
            if step not in there.steps:
                before = len(there.steps)
                there.add(step)
                assert before + 1 <= most_at_once(due, window, track)
    assert there.steps[-1] == end
    assert len(there.steps) >= 2
    if end == total and not track:
        assert there.steps == planned_steps(*plan)


def test_an_interrupted_run_has_a_window_up_to_its_last_snapshot(tmp_path: Path) -> None:
    interrupted(CASES["plain"], tmp_path, 17, **CHECKPOINTS)
    while not snapshot_path(tmp_path / "trajectory", 15).exists():
        time.sleep(0.01)  # nobody waits for the thread that writes it
    record = Trajectory.open(tmp_path / "trajectory")
    assert not record.manifest.complete
    assert record.window == (5, 15)


def test_a_finished_run_that_trains_on_gets_the_window_of_all_its_steps(tmp_path: Path) -> None:
    overrides = {"save_strategy": "epoch"}
    trained(tmp_path, [], num_train_epochs=4, **overrides)
    set_seed(0)
    args = toys.arguments(tmp_path / "out", num_train_epochs=8, lr_scheduler_type="constant", **overrides)
    longer = Trainer(
        toys.Mlp(), args, train_dataset=toys.vectors(64, noise=2.0), callbacks=[TrajectoryCallback(tmp_path / "t")]
    )
    longer.train(resume_from_checkpoint=True)
    assert Trajectory.open(tmp_path / "t").snapshot_steps == [32, 40, 48, 56, 64]
