"""Processes of a launch wait for each other as long as it takes, and no longer than all of them live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.forks import KILLED, run_module


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What pairs of processes of a group with a timeout of 1 second did, where the first worked for 2.5 alone."""
    directory: Path = tmp_path_factory.mktemp("waiting")
    return dict(run_module("tests.core.waiting", directory))


WAYS = ("barrier", "broadcast", "main_first")


def test_the_launchs_own_barrier_ends_both_processes_where_one_works_longer_than_its_timeout(told):
    assert told["the launch's own"]["ends"] == [1, 1]


@pytest.mark.parametrize("way", [*WAYS, "late"])
def test_process_that_works_longer_than_the_timeout_is_waited_for(way, told):
    assert told[f"{way} works"] == {"ends": [0, 0], "words": ""}


@pytest.mark.parametrize("way", WAYS)
def test_process_that_waits_for_a_killed_one_ends_with_a_sentence(way, told):
    found = told[f"{way} dies"]
    assert found["ends"] == [KILLED, 1]
    assert found["words"].startswith("RuntimeError: Another process of this launch ended while this one waited for it")


@pytest.mark.parametrize("way", WAYS)
def test_process_that_waits_for_one_that_failed_ends_with_a_sentence(way, told):
    found = told[f"{way} fails"]
    assert found["ends"] == [1, 1]
    assert "OSError: the disk is full" in found["words"] or "see that one's error" in found["words"]
    assert way != "main_first" or "OSError: the disk is full" in found["words"]


def test_record_begins_after_the_main_process_has_read_rows_for_longer_than_the_timeout(told):
    assert told["recording"]["ends"] == [0, 0]


def test_processes_that_gather_a_snapshot_wait_for_a_disk_that_is_slower_than_the_timeout(told):
    assert told["slow disk"] == {"ends": [0, 0], "words": ""}


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_processes_share_scoring_where_one_is_slower_than_the_timeout(engine, told):
    assert told[engine]["ends"] == [0, 0]
    first, second = told[engine]["found"]
    assert first == second
    assert any(first)
