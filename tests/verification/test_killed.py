"""A probe or a verification that is killed goes on where it was; the latter leaves a whole result or the old one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.forks import KILLED, run_module
from tests.verification.killed import OLD


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(run_module("tests.verification.killed", tmp_path_factory.mktemp("killed"), timeout=600))


def test_probe_that_is_killed_at_any_moment_goes_on_where_it_was(told):
    whole, tried = told["probe"]["whole"], told["probe"]["tried"]
    assert whole["status"] == 0
    assert len(whole["known"]) == whole["trainings"] == 6
    assert len(tried) > 12
    for one in tried:
        killed, again = one["killed"], one["again"]
        assert (killed["status"], again["status"]) == (KILLED, 0)
        assert killed["trainings"] - len(killed["known"]) in (0, 1)  # the one in which it was killed
        assert again["trainings"] == whole["trainings"] - len(killed["known"])
        assert (again["found"], again["known"]) == (whole["found"], whole["known"])
    assert {len(one["killed"]["known"]) for one in tried} == {0, 2, 3, 6}


def test_verification_that_is_killed_leaves_the_old_result_or_a_whole_one_and_the_next_goes_on_where_it_was(told):
    whole, tried = told["verify"]["whole"], told["verify"]["tried"]
    assert (whole["status"], whole["trainings"], whole["known"]) == (0, 3, [])
    for one in tried:
        killed, again = one["killed"], one["again"]
        assert (killed["status"], again["status"]) == (KILLED, 0)
        assert killed["verified"] in (OLD, whole["verified"])
        assert again["verified"] == whole["verified"]
        assert again["trainings"] == 3 - len(killed["known"])
        if killed["verified"] == OLD:
            assert killed["trainings"] - len(killed["known"]) in (0, 1)  # the one in which it was killed
    assert {len(one["killed"]["known"]) for one in tried} == {0, 1, 2, 3}
    states = [one["killed"]["verified"] for one in tried]
    assert (states[0], states[-1]) == (OLD, whole["verified"])


@pytest.mark.parametrize("name", ["probe", "verify"])
def test_killed_probes_and_verifications_leave_no_remains_after_the_next_one(name, told):
    tried, whole = told[name]["tried"], told[name]["whole"]
    assert sum(any(".tmp" in file for file in one["killed"]["files"]) for one in tried) > 4  # some to be removed
    for one in tried:
        assert one["again"]["files"] == whole["files"]
