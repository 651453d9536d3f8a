"""The ledger names exactly the rows that the model was given, in every way to run one process."""

from pathlib import Path

import pytest
from transformers import Trainer

from hf_prune.record import TrajectoryCallback, with_example_ids
from hf_prune.trajectory import Trajectory
from tests.record.truth import CASES, Case, Telling, pad, run, telling_rows
from tests.toys import arguments


def recorded(trajectory: Trajectory, rank: int = 0) -> list[list[int]]:
    """Ids of each micro-batch of a rank, in order."""
    return [list(b.ids) for step in trajectory.steps() for b in step.micro_batches if b.rank == rank]


@pytest.mark.parametrize("name", list(CASES))
def test_ledger_equals_what_the_model_saw(name: str, tmp_path: Path) -> None:
    model = run(CASES[name], tmp_path)
    trajectory = Trajectory.open(tmp_path / "trajectory")
    assert len(model.seen) > 5
    assert recorded(trajectory) == model.seen
    assert trajectory.manifest.complete
    assert [step.index for step in trajectory.steps()] == list(range(len(trajectory)))


def test_micro_batches_of_a_short_last_cycle_stay_in_their_step(tmp_path: Path) -> None:
    run(CASES["accumulation with a short last cycle"], tmp_path)
    counts = [len(step.micro_batches) for step in Trajectory.open(tmp_path / "trajectory").steps()]
    assert counts == [4, 4, 1] * 3


def test_ids_in_a_numbered_dataset_follow_the_row_when_rows_move(tmp_path: Path) -> None:
    rows = with_example_ids(telling_rows(30)).shuffle(seed=3).select(range(20))
    model = Telling(30)
    args = arguments(tmp_path / "out", remove_unused_columns=False, num_train_epochs=1)
    callback = TrajectoryCallback(tmp_path / "trajectory")
    Trainer(model, args, train_dataset=rows, data_collator=pad, callbacks=[callback]).train()
    trajectory = Trajectory.open(tmp_path / "trajectory")
    assert trajectory.id_column == "hf_prune_id"
    assert recorded(trajectory) == model.seen


def test_compilation_changes_nothing(tmp_path: Path) -> None:
    model = run(Case(rows=20), tmp_path, num_train_epochs=1, torch_compile=True, torch_compile_backend="eager")
    trajectory = Trajectory.open(tmp_path / "trajectory")
    assert recorded(trajectory) == model.seen
    assert {b.scale for step in trajectory.steps() for b in step.micro_batches} == {1.0}
