"""With two processes each rank's ledger names what that rank was given, and factors average over ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hf_prune import RecordingError
from hf_prune.trajectory import Trajectory
from tests.launch import launch
from tests.record.test_ledger_truth import recorded
from tests.record.test_weights import HEADS, assert_steps_come_out_the_same
from tests.record.truth import CASES, run
from tests.record.two_processes import SKIPPED
from tests.toys import vectors


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    launch("tests.record.two_processes", directory)
    return directory


@pytest.mark.parametrize("name", [name for name in CASES if name not in SKIPPED])
def test_each_rank_records_what_it_saw(name: str, launched: Path) -> None:
    place = launched / name.replace(" ", "-")
    trajectory = Trajectory.open(place / "trajectory")
    assert trajectory.manifest.world_size == 2
    for rank in range(2):
        seen = json.loads((place / f"seen-{rank}.json").read_text())
        assert len(seen) > 3
        assert recorded(trajectory, rank) == seen


@pytest.mark.parametrize(("name", "size"), [("plain", 4), ("split batches", 2)])
def test_the_manifest_names_the_size_of_the_micro_batches(name: str, size: int, launched: Path) -> None:
    trajectory = Trajectory.open(launched / name.replace(" ", "-") / "trajectory")
    largest = max(len(batch.ids) for step in trajectory.steps() for batch in step.micro_batches)
    assert trajectory.manifest.per_device_train_batch_size == largest == size


def test_a_run_that_goes_on_with_another_number_of_processes_is_refused(launched: Path, tmp_path: Path) -> None:
    place = tmp_path / "resumed"
    shutil.copytree(launched / "resumed", place)
    checkpoint = str(place / "out" / "checkpoint-3")
    with pytest.raises(RecordingError, match=r"holds the record of another run \(world size differs\): resume with"):
        run(CASES["uneven last batch"], place, resume=checkpoint, num_train_epochs=2)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("head", list(HEADS))
def test_recorded_factors_reproduce_the_step_of_two_processes(head: str, accumulation: int, launched: Path) -> None:
    place = launched / f"weights-{head}-{accumulation}"
    assert_steps_come_out_the_same(place / "trajectory", HEADS[head](), vectors(40))


def test_a_resumed_run_of_two_processes_continues_its_record(launched: Path) -> None:
    place = launched / "resumed"
    trajectory = Trajectory.open(place / "trajectory")
    for rank in range(2):
        tail = json.loads((place / f"seen-{rank}.json").read_text())
        assert recorded(trajectory, rank)[3:] == tail
    assert (place / "trajectory" / "ledger" / "rank-00001-part-001.jsonl").exists()


def test_two_processes_that_stop_early_keep_the_windows_of_the_best_and_of_the_last_step(launched: Path) -> None:
    place = launched / "early"
    best, last = json.loads((place / "ends-0.json").read_text())
    assert json.loads((place / "ends-1.json").read_text()) == [best, last]
    assert best < last < 200
    record = Trajectory.open(place / "t")
    assert record.window[1] == record.manifest.last_step == last
    assert record.window[0] == record.manifest.window_start
    assert record.until(best).window[1] == best


def told(launched: Path, name: str) -> list[dict]:
    return [json.loads((launched / f"agreed-{name}" / f"told-{rank}.json").read_text()) for rank in range(2)]


def test_processes_agree_where_a_snapshot_is_due_and_at_no_other_step(launched: Path) -> None:
    first, second = told(launched, "raise")
    assert first == second
    assert (first["last"], first["said"]) == (36, "")
    assert first["met"] == [6, 12, 18, 30, 36]
    assert Trajectory.open(launched / "agreed-raise" / "t").manifest.complete


@pytest.mark.parametrize("on_error", ["raise", "stop-recording"])
def test_a_full_disk_of_one_process_ends_recording_in_both_at_the_next_snapshot(on_error: str, launched: Path) -> None:
    first, second = told(launched, f"full-{on_error}")
    assert first == second
    assert first["last"] == (6 if on_error == "raise" else 36)
    assert ("cannot be written" in first["said"]) == (on_error == "raise")
    left = Trajectory.open(launched / f"agreed-full-{on_error}" / "t")
    assert 1 <= len(left) < 6
    assert not left.manifest.complete
    assert on_error == "raise" or "cannot be written" in (left.manifest.stopped or "")
