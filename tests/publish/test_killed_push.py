"""However a push ends, the Hub has the old rows with their card and provenance or the new ones with theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.forks import KILLED
from tests.hub_server import Hub
from tests.hub_store import Commit
from tests.publish.test_hub import TEXT, USER_CARD
from tests.publish.told import told_by

PROVENANCE = "hf_prune/provenance.json"


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, Any]]]:
    with Hub() as hub:
        yield hub, told_by("tests.publish.clients.killed_push", hub, tmp_path_factory.mktemp("home"), given=USER_CARD)


def commits(hub: Hub, kind: str, head: str | None) -> list[Commit]:
    """The commits that a branch holds, the last one first."""
    known, found = hub.past | hub.repo(f"alice/{kind}").commits, []
    while head is not None:
        found.append(known[head])
        head = found[-1].parent
    return found


def contents(commit: Commit) -> dict[str, bytes]:
    """The files, without the second in which they were made."""
    files = {path: blob.content for path, blob in commit.files.items()}
    if PROVENANCE in files:
        digest = hashlib.sha256(files[PROVENANCE]).hexdigest().encode()
        made = json.loads(files[PROVENANCE])["created"].encode()
        files = {path: content.replace(digest, b"").replace(made, b"") for path, content in files.items()}
    return files


def state(hub: Hub, kind: str, head: str | None) -> dict[str, bytes]:
    """What a reader of the branch finds; a repository that has just been made is as good as none."""
    found = contents(commits(hub, kind, head)[0]) if head else {}
    return {} if found.keys() <= {".gitattributes"} else found


@pytest.mark.parametrize(("kind", "times"), [("over", 11), ("new", 6), ("branch", 6)])
def test_push_that_is_killed_at_any_request_leaves_the_old_state_or_the_new_one(clients, kind, times):
    hub, told = clients[0], clients[1][kind]
    old, new = state(hub, kind, told["start"]), state(hub, kind, told["whole"]["head"])
    assert told["replayed"] == 15
    assert old != new
    assert len(told["tried"]) >= times
    assert {one["killed"]["status"] for one in told["tried"]} == {KILLED}
    before = {} if kind == "branch" else old
    found = [state(hub, kind, one["killed"]["head"]) for one in told["tried"]]
    assert all(one in (before, old, new) for one in found)
    assert found[0] == before
    assert found.count(new) == 1  # the commit was made, and the answer met nobody
    assert found[-1] == new


def test_push_that_is_killed_between_requests_leaves_the_old_state_or_the_new_one(clients):
    hub, told = clients[0], clients[1]["over"]
    states = [state(hub, "over", head) for head in (told["start"], told["whole"]["head"])]
    found = [state(hub, "over", one["killed"]["head"]) for one in told["files"]]
    assert all(one in states for one in found)
    assert sum(one["killed"]["status"] == KILLED for one in told["files"]) >= 4


@pytest.mark.parametrize("kind", ["over", "new", "branch"])
def test_pushing_again_after_a_kill_gives_what_an_undisturbed_push_does(clients, kind):
    hub, told = clients[0], clients[1][kind]
    whole = commits(hub, kind, told["whole"]["head"])
    for one in told["tried"] + told.get("files", []):
        assert one["again"]["status"] == 0
        again = commits(hub, kind, one["again"]["head"])
        assert [(commit.title, contents(commit)) for commit in again] == [
            (commit.title, contents(commit)) for commit in whole
        ]
        assert kind != "branch" or one["main"] == told["start"]


@pytest.mark.parametrize("kind", ["over", "branch"])
def test_users_text_is_in_every_state(clients, kind):
    hub, told = clients[0], clients[1][kind]
    for one in told["tried"]:
        readme = state(hub, kind, one["killed"]["head"] or told["start"])["README.md"].decode()
        assert TEXT.strip() in readme
        assert ("15 of the 60 rows" in readme) == (one["killed"]["head"] == one["again"]["head"])
