"""Machines without a common disk leave the record that they would leave on one."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_prune import TrajectoryError
from hf_prune.cli.application import app
from hf_prune.trajectory import Trajectory, gather, read_visits
from tests.launch import launch
from tests.record.apart import STOPS


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("apart")
    launch("tests.record.apart", directory)
    return directory


def told(launched: Path, what: str) -> list[str]:
    return [json.loads((launched / f"told-{rank}.json").read_text())[what] for rank in range(2)]


def assert_same(found: Trajectory, wanted: Trajectory) -> None:
    names = [{**asdict(record.manifest), "run_id": ""} for record in (found, wanted)]
    assert names[0] == names[1]
    assert found.steps() == wanted.steps()
    assert found.snapshot_steps == wanted.snapshot_steps
    for step in wanted.snapshot_steps:
        assert torch.equal(found.parameters_at(step), wanted.parameters_at(step))
        assert torch.equal(found.second_moment_at(step), wanted.second_moment_at(step))
    visits = [read_visits(record) for record in (found, wanted)]
    assert (visits[0].ids == visits[1].ids).all()
    assert (visits[0].loss == visits[1].loss).all()


def test_two_machines_leave_the_record_of_a_common_disk(launched: Path) -> None:
    wanted = Trajectory.open(launched / "together")
    assert {batch.rank for batch in wanted.step(0).micro_batches} == {0, 1}
    assert_same(Trajectory.open(launched / "machine-0" / "t"), wanted)
    assert not list((launched / "machine-1" / "t" / "snapshots").iterdir())
    assert not list(launched.rglob("*.tmp"))


def test_a_run_that_was_resumed_on_two_machines_is_whole(launched: Path) -> None:
    wanted = Trajectory.open(launched / "together")
    place = launched / "machine-0" / "resumed"
    assert (place / "ledger" / "rank-00001-part-001.jsonl").exists()
    found = Trajectory.open(place)
    assert [step.ids.tolist() for step in found.steps()] == [step.ids.tolist() for step in wanted.steps()]
    assert found.snapshot_steps == wanted.snapshot_steps
    for step in wanted.snapshot_steps:
        torch.testing.assert_close(found.parameters_at(step), wanted.parameters_at(step), rtol=0, atol=1e-6)


def test_a_run_that_was_killed_on_two_machines_is_gathered(launched: Path, tmp_path: Path) -> None:
    places = [tmp_path / f"machine-{rank}" for rank in range(2)]
    for rank, place in enumerate(places):
        shutil.copytree(launched / f"machine-{rank}" / "killed", place)
    with pytest.raises(TrajectoryError, match=r"The ledger of process 1 of 2 is missing .*hf-prune gather"):
        Trajectory.open(places[0])
    found = gather(places[0], [places[1]])
    assert len(found) == STOPS
    assert found.steps() == Trajectory.open(launched / "together").steps()[:STOPS]
    assert len(gather(places[0], [places[1]])) == STOPS, "again, which changes nothing"


def test_a_killed_run_is_gathered_from_a_terminal(launched: Path, tmp_path: Path) -> None:
    place = tmp_path / "machine-0"
    shutil.copytree(launched / "machine-0" / "killed", place)
    command = ["gather", str(place), str(launched / "machine-1" / "killed")]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"]["recorded"] == STOPS
    assert CliRunner().invoke(app, [*command, str(tmp_path)]).exit_code == 1


def test_what_does_not_belong_together_is_not_gathered(launched: Path, tmp_path: Path) -> None:
    place, other = tmp_path / "0", tmp_path / "1"
    shutil.copytree(launched / "machine-0" / "killed", place)
    shutil.copytree(launched / "machine-1" / "killed", other)
    with pytest.raises(TrajectoryError, match=r"holds another run than .*gather directories of one run"):
        gather(place, [launched / "machine-1" / "t"])
    with pytest.raises(TrajectoryError, match="There is no ledger in"):
        gather(place, [tmp_path / "nowhere"])
    gather(place, [other])
    part = other / "ledger" / "rank-00001-part-000.jsonl"
    longer = part.read_bytes() + b"{"
    part.write_bytes(longer)
    gather(place, [other])
    assert (place / "ledger" / part.name).read_bytes() == longer, "more of the same ledger takes its place"
    part.write_bytes(longer.replace(b'"skipped":false', b'"skipped": true'))
    with pytest.raises(TrajectoryError, match="differ: gather directories of one run"):
        gather(place, [other])
    assert (place / "ledger" / part.name).read_bytes() == longer


def test_scoring_on_two_machines_says_what_it_needs(launched: Path) -> None:
    for words in told(launched, "scoring"):
        assert words.startswith("UnsupportedError: add_influence by several processes needs a directory that all of")


def test_another_run_on_one_machine_alone_is_refused_by_both(launched: Path) -> None:
    first, second = told(launched, "another run")
    assert first == second
    assert "already holds the record of another run" in first
    assert not (launched / "another" / "manifest.json").exists()


def test_a_main_process_without_room_for_the_ledgers_lets_nobody_wait(launched: Path) -> None:
    first, second = told(launched, "full disk")
    assert first.startswith("OSError: ")
    assert "File too large" in first
    assert second == ""
