"""However a process ends that saves a selection or selects, the old selection or the new one is there."""

from __future__ import annotations

from typing import Any

import pytest

from tests.forks import KILLED, run_module


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(run_module("tests.selection.killed", tmp_path_factory.mktemp("killed")))


@pytest.mark.parametrize(("kind", "before", "times"), [("over", "old", 20), ("new", "nothing", 8)])
def test_saving_that_is_killed_at_any_moment_leaves_the_old_selection_or_the_new_one(kind, before, times, told):
    tried = told[kind]
    assert {one["state"] for one in tried} == {before, "new"}
    assert sum(one["status"] == KILLED for one in tried) >= times
    assert [tried[0]["state"], tried[-1]["state"], tried[-1]["status"]] == [before, "new", 0]


@pytest.mark.parametrize("kind", ["over", "new"])
def test_saving_again_completes_what_was_killed_and_leaves_no_remains(kind, told):
    again = [one for one in told[kind] if "again" in one]
    assert len(again) > 2
    assert all(one["again"] == "new" and one["left"] for one in again)


def test_full_disk_leaves_the_old_selection_and_says_so(told):
    assert len(told["full"]) == 3
    for one in told["full"]:
        assert one["state"] == "old"
        assert one["left"] == ["dropped_ids.parquet", "kept_ids.parquet", "rows.parquet", "selection.json"]
        assert one["words"].startswith("The selection cannot be written to ")
        assert "free disk space" in one["words"]


def test_pruning_changes_no_file(told):
    assert KILLED in told["pruning"]["ends"]
    assert told["pruning"]["same"]


def test_lost_worker_is_told_and_selecting_again_finds_the_same(told):
    assert told["worker"]["words"].startswith("RuntimeError: A worker process was killed while rows were selected")
    assert told["worker"]["same"]
