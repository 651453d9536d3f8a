"""Snapshots that each process wrote a part of are those that one process wrote whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune import TrajectoryError
from hf_prune.trajectory import Trajectory, gather, summarize
from hf_prune.trajectory.manifest import read_manifest
from hf_prune.trajectory.parts import SnapshotParts, saved_snapshots
from hf_prune.trajectory.snapshots import PARAMETERS, SECOND_MOMENT, WholeSnapshot
from tests.launch import launch
from tests.record.in_parts import KILLED_AT, SAVED_AT

STEPS = [5, 7, 9, 10]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parts")
    launch("tests.record.in_parts", directory, "run")
    return directory


def told(launched: Path, what: str) -> list[dict[str, Any]]:
    return [json.loads((launched / f"told-{rank}.json").read_text())[what] for rank in range(2)]


def names(record: Path) -> list[str]:
    return sorted(path.name for path in (record / "snapshots").iterdir())


def parts_of(steps: list[int], ranks: tuple[int, ...] = (0, 1)) -> list[str]:
    return [f"step-{step:08d}-rank-{rank:05d}.safetensors" for step in steps for rank in ranks]


def assert_same(found: Trajectory, wanted: Trajectory) -> None:
    assert found.snapshot_steps == wanted.snapshot_steps == STEPS
    for step in STEPS:
        assert torch.equal(found.parameters_at(step), wanted.parameters_at(step))
        assert torch.equal(found.second_moment_at(step), wanted.second_moment_at(step))
        assert torch.equal(found.samples_at(step), wanted.samples_at(step))
    assert torch.equal(found.parameters_at(6), wanted.parameters_at(6))


@pytest.mark.parametrize(("whole", "parts"), [("whole", "parts"), ("whole-columns", "columns")])
def test_parts_are_the_whole_to_the_last_bit(whole: str, parts: str, launched: Path) -> None:
    wanted = Trajectory.open(launched / whole)
    assert all(isinstance(one, WholeSnapshot) for one in saved_snapshots(wanted.path, wanted.manifest).values())
    assert names(launched / parts) == parts_of(STEPS), "what is superseded is removed in both processes"
    assert_same(Trajectory.open(launched / parts), wanted)
    on_disk = sum(path.stat().st_size for path in (launched / parts / "snapshots").iterdir())
    assert summarize(launched / parts)["bytes"]["snapshots"] == on_disk


def test_pieces_are_uneven_and_some_processes_have_none(launched: Path) -> None:
    root = launched / "parts"
    parameters = {one.name: one.shape for one in read_manifest(root).parameters}
    assert any(shape[0] % 2 for shape in parameters.values() if shape[0] > 1)
    assert any(shape[0] == 1 for shape in parameters.values())


def test_no_process_holds_a_whole_snapshot(launched: Path) -> None:
    whole, parts = told(launched, "whole"), told(launched, "parts")
    size = read_manifest(launched / "whole").n_parameters
    assert [one["held"] for one in whole] == [2 * 4 * size, 0]
    assert whole[0]["gathered"] > 100
    assert sum(one["held"] for one in parts) == 2 * 4 * size
    assert max(one["held"] for one in parts) < 0.55 * 2 * 4 * size
    assert [one["gathered"] for one in parts] == [1, 1], "the gradient's norm, and no parameter"


def test_one_parameter_is_read_from_its_own_pieces(launched: Path, tmp_path: Path) -> None:
    root = tmp_path / "t"
    shutil.copytree(launched / "parts", root)
    manifest = read_manifest(root)
    path = root / "snapshots" / parts_of(STEPS)[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last one's second moment
    path.write_bytes(content)
    snapshot = saved_snapshots(root, manifest)[STEPS[0]]
    assert isinstance(snapshot, SnapshotParts)
    whole, start = Trajectory.open(launched / "whole").parameters_at(STEPS[0]), 0
    for one in manifest.parameters:
        assert torch.equal(snapshot.vector(PARAMETERS, [one]), whole[start : start + one.size])
        start += one.size
    with pytest.raises(TrajectoryError, match=rf"{path.name} is damaged \(its digest differs\)"):
        snapshot.vector(SECOND_MOMENT, [manifest.parameters[-1]])
    with pytest.raises(TrajectoryError, match=r"its digest differs"):
        Trajectory.open(root).parameters_at(STEPS[0])


def test_a_part_that_is_missing_is_told_in_a_sentence(launched: Path, tmp_path: Path) -> None:
    root = tmp_path / "t"
    shutil.copytree(launched / "parts", root)
    missing = root / "snapshots" / parts_of([7])[1]
    missing.unlink()
    with pytest.raises(TrajectoryError, match=r"The snapshot of step 7 lacks the part of process 1 of 2 .*copy the"):
        Trajectory.open(root)
    other = root / "snapshots" / parts_of([9])[1]
    shutil.copy(other, missing)
    with pytest.raises(TrajectoryError, match="was taken at step 9: give it its own name again"):
        Trajectory.open(root)
    shutil.copy(root / "snapshots" / parts_of([7])[0], missing)
    with pytest.raises(TrajectoryError, match="is another process's: give it its own name again"):
        Trajectory.open(root)


def test_machines_without_a_common_disk_gather_their_parts(launched: Path) -> None:
    assert names(launched / "machine-1" / "t") == parts_of(STEPS, (1,))
    assert_same(Trajectory.open(launched / "machine-0" / "t"), Trajectory.open(launched / "whole"))


def test_a_full_disk_of_one_process_ends_recording_in_both(launched: Path) -> None:
    first, second = told(launched, "full")
    assert first["said"] == second["said"]
    assert "cannot be written" in first["said"]
    assert Trajectory.open(launched / "full").snapshot_steps == []


@pytest.mark.parametrize("machines", ["", "-machines"])
def test_a_run_that_was_killed_between_two_parts_goes_on(machines: str, launched: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="SIGKILL"):
        launch("tests.record.in_parts", tmp_path, f"kill{machines}")
    places = [tmp_path / f"machine-{rank}" / "killed" for rank in range(2)] if machines else [tmp_path / "killed"]
    assert parts_of([KILLED_AT])[0] in names(places[0])
    assert parts_of([KILLED_AT])[1] not in names(places[-1])
    copy = tmp_path / "copy"
    shutil.copytree(places[0], copy)
    left = gather(copy, places[1:])
    assert len(left) >= SAVED_AT
    assert left.snapshot_steps == [2, 4, 5, 7], "what one process wrote does not count, and removes nothing"
    wanted = Trajectory.open(launched / "whole")
    assert torch.equal(left.parameters_at(5), wanted.parameters_at(5))
    launch("tests.record.in_parts", tmp_path, f"resume{machines}")
    assert names(places[-1]) == parts_of(STEPS, (1,) if machines else (0, 1))
    assert_same(Trajectory.open(places[0]), wanted)
