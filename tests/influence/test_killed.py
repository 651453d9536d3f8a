"""kill -9 at any moment of a scoring leaves whole files, and the next one gives what an undisturbed one does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.forks import KILLED, run_module
from tests.influence.killed import ENGINES, MOMENTS


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(run_module("tests.influence.killed", tmp_path_factory.mktemp("killed"), timeout=900))


@pytest.mark.parametrize("way", list(MOMENTS))
@pytest.mark.parametrize("engine", ENGINES)
def test_scoring_that_is_killed_at_any_moment_is_completed_by_the_next_one(engine, way, told):
    found = told[f"{engine} {way}"]
    whole, tried = found["whole"], found["tried"]
    assert set(whole["ends"]) == {0}
    assert sum(KILLED in one["ends"] for one in tried) >= MOMENTS[way] - 1
    for one in tried:
        assert set(one["ends"]) <= {KILLED, 0, 1}  # 1: the other process, which says so
        assert one["damaged"] == []
        assert set(one["again"]) == {0}
        assert one["values"] == whole["values"]
        assert one["names"] == whole["names"]
