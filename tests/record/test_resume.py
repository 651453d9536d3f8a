"""A run that is interrupted and resumed leaves the record that an uninterrupted run leaves; two runs never mix."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_prune import RecordingError
from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import Trajectory
from hf_prune.trajectory.files import snapshot_path
from tests.record.test_ledger_truth import recorded
from tests.record.truth import CASES, Case, run
from tests.toys import Mlp, train, vectors


class CutError(Exception):
    """Stands for whatever ends a run."""


class Interrupt(TrainerCallback):
    """Ends training with an exception in the middle of the step after `step`."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise CutError


def interrupted(case: Case, place: Path, step: int, **settings: Any) -> None:
    with pytest.raises(CutError):
        run(case, place, callbacks=[Interrupt(step)], **settings)


def assert_same_record(left: Trajectory, right: Trajectory) -> None:
    assert left.steps() == right.steps()
    assert left.window == right.window
    assert left.snapshot_steps == right.snapshot_steps
    for step in range(*left.window):
        assert torch.equal(left.parameters_at(step), right.parameters_at(step))
        assert torch.equal(left.second_moment_at(step), right.second_moment_at(step))
        assert left.updates_before(step) == right.updates_before(step)


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 4}
RESUMABLE = ["uneven last batch", "accumulation with a short last cycle", "two workers", "numbered"]


@pytest.mark.parametrize("name", RESUMABLE)
def test_resumed_record_equals_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    run(case, tmp_path / "whole", **CHECKPOINTS)
    whole = Trajectory.open(tmp_path / "whole" / "trajectory")
    step = len(whole) * 4 // 5  # the checkpoint before it lies within an epoch
    interrupted(case, tmp_path / "parts", step, **CHECKPOINTS)
    cut = Trajectory.open(tmp_path / "parts" / "trajectory")
    assert len(cut) == step
    assert not cut.manifest.complete
    run(case, tmp_path / "parts", resume=True, **CHECKPOINTS)
    assert_same_record(whole, Trajectory.open(tmp_path / "parts" / "trajectory"))


@pytest.mark.parametrize("name", ["group by length", "sampler of torch"])
def test_a_sampler_that_resumes_in_another_order_is_recorded_in_that_order(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    interrupted(case, tmp_path, 17, **CHECKPOINTS)
    model = run(case, tmp_path, resume=True, **CHECKPOINTS)
    trajectory = Trajectory.open(tmp_path / "trajectory")
    assert recorded(trajectory)[16:] == model.seen
    assert len(trajectory) == 30


def test_resuming_without_skipping_data_records_what_was_trained(tmp_path: Path) -> None:
    case = CASES["uneven last batch"]
    interrupted(case, tmp_path, 17, **CHECKPOINTS)
    model = run(case, tmp_path, resume=True, ignore_data_skip=True, **CHECKPOINTS)
    trajectory = Trajectory.open(tmp_path / "trajectory")
    assert recorded(trajectory)[16:] == model.seen
    assert len(trajectory) == 30


def test_resuming_from_an_early_checkpoint_forgets_the_steps_after_it(tmp_path: Path) -> None:
    case = CASES["plain"]
    interrupted(case, tmp_path, 27, **CHECKPOINTS)
    while not snapshot_path(tmp_path / "trajectory", 25).exists():
        time.sleep(0.01)  # nobody waits for the thread that writes it
    assert Trajectory.open(tmp_path / "trajectory").snapshot_steps == [10, 15, 25]
    place = tmp_path / "out" / "checkpoint-8"
    with pytest.raises(CutError):
        run(case, tmp_path, callbacks=[Interrupt(12)], resume=str(place), **CHECKPOINTS)
    trajectory = Trajectory.open(tmp_path / "trajectory")
    assert len(trajectory) == 12
    assert trajectory.snapshot_steps == [8, 10]  # none was left from before the checkpoint


def test_an_interrupted_resume_can_be_resumed_again(tmp_path: Path) -> None:
    case = CASES["uneven last batch"]
    run(case, tmp_path / "whole", **CHECKPOINTS)
    place = tmp_path / "parts"
    interrupted(case, place, 9, **CHECKPOINTS)
    interrupted(case, place, 21, resume=True, **CHECKPOINTS)
    run(case, place, resume=True, **CHECKPOINTS)
    parts = Trajectory.open(place / "trajectory")
    assert_same_record(Trajectory.open(tmp_path / "whole" / "trajectory"), parts)


def test_a_second_run_is_refused_and_leaves_the_first_untouched(tmp_path: Path) -> None:
    run(CASES["plain"], tmp_path, num_train_epochs=1)
    before = Trajectory.open(tmp_path / "trajectory").digest
    with pytest.raises(RecordingError, match="choose another output_dir"):
        run(CASES["plain"], tmp_path, num_train_epochs=1)
    assert Trajectory.open(tmp_path / "trajectory").digest == before


def test_resuming_into_another_runs_record_is_refused(tmp_path: Path) -> None:
    run(CASES["plain"], tmp_path, **CHECKPOINTS)
    checkpoint = str(tmp_path / "out" / "checkpoint-8")
    with pytest.raises(RecordingError, match="holds no record of the steps before"):
        run(CASES["plain"], tmp_path, resume=checkpoint, trajectory="other")
    train(Mlp(), vectors(), tmp_path / "mlp", [TrajectoryCallback(tmp_path / "third")])
    with pytest.raises(RecordingError, match="another run"):
        run(CASES["plain"], tmp_path, resume=checkpoint, trajectory="third")


def test_a_run_that_never_made_a_step_does_not_block_its_directory(tmp_path: Path) -> None:
    interrupted(CASES["plain"], tmp_path, 0)
    run(CASES["plain"], tmp_path)
    assert Trajectory.open(tmp_path / "trajectory").manifest.complete


def test_training_again_with_the_same_callback_after_a_crash_starts_over(tmp_path: Path) -> None:
    callback = TrajectoryCallback(tmp_path / "t")
    with pytest.raises(CutError):
        train(Mlp(), vectors(), tmp_path / "out", [callback, Interrupt(3)])
    train(Mlp(), vectors(), tmp_path / "out", [callback])
    assert len(Trajectory.open(tmp_path / "t")) == 32
