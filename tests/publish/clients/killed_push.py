"""
Pushes from forked processes, each killed at another moment, then pushes again. Usage: killed_push.py < README.md

The Hub kills a process when one of its requests arrives, or when it is carried out and not answered yet; between two
requests it is killed at changes of its own files.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from hf_prune.publish.replay import replay
from hf_prune.selection import prune
from tests.forks import Killer, ended, fork
from tests.publish import samples
from tests.publish.clients.wire import ask, fault, push, requests

ANY = "^/(?!_fault|_reset|_requests)"
CHANGING = re.compile("(POST|PUT) .*/(create|branch|commit|_lfs)/?")
WHERE: dict[str, dict[str, Any]] = {"over": {}, "new": {}, "branch": {"revision": "half"}}
"""Over an older push, to a repository that is not there, and to a branch that is not there."""
OLD, NEW = prune(samples.scored(), keep=0.5), prune(samples.scored(seed=3), keep=0.25)


def head(repo_id: str, revision: str = "main") -> str | None:
    """The commit that a branch is at, None where there is none."""
    try:
        return str(ask(f"/api/datasets/{repo_id}/revision/{revision}")["sha"])
    except HTTPError:
        return None


def pushed(kind: str, arm: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """How a process ended that pushes, after it armed its own fault, and the commit that the branch is at then."""

    def work() -> None:
        arm()
        NEW.push_to_hub(f"alice/{kind}", **WHERE[kind])

    status = ended(fork(work))
    fault("", ANY, "clear")
    return {"status": status, "head": head(f"alice/{kind}", **WHERE[kind])}


def at_requests(kind: str, asked: list[str]) -> Iterator[Callable[[], None]]:
    """Kills at each request that changes something, and at some that read before a push over an older one."""
    for skip, request in enumerate(asked):
        changing = CHANGING.match(request) is not None
        for action in ("kill", "late kill"):
            if changing or (kind == "over" and action == "kill" and skip % 3 == 0):
                yield lambda action=action, skip=skip: fault("", ANY, f"{action} {os.getpid()}", skip)  # type: ignore[misc]


def suffer(readme: bytes) -> dict[str, Any]:
    home = Path(os.environ["HF_HOME"])
    tempfile.tempdir = str(home)  # all that the client writes lies here
    OLD.push_to_hub("alice/over", dry_run=True)  # what it imports, forks have then
    told: dict[str, Any] = {}
    for kind, way in WHERE.items():
        repo_id = f"alice/{kind}"
        if kind != "new":
            push(repo_id, {"README.md": readme})
            assert ended(fork(lambda: OLD.push_to_hub(repo_id))) == 0  # noqa: B023
        start = head(repo_id)

        def begin(kind: str = kind, start: str | None = start) -> None:
            ask("/_reset", {"repo": f"alice/{kind}", "commit": start})
            shutil.rmtree(home / "hub", ignore_errors=True)  # what the client has, it does not ask for

        def once(arm: Callable[[], Any], kind: str = kind, begin: Callable[[], None] = begin) -> dict[str, Any]:
            begin()
            return {"killed": pushed(kind, arm), "again": pushed(kind), "main": head(f"alice/{kind}")}

        begin()
        before = len(requests())
        whole = pushed(kind)
        asked = [line for line in requests()[before:] if not re.search(" /_(fault|requests)", line)][:-1]
        told[kind] = {"start": start, "whole": whole, "tried": [once(arm) for arm in at_requests(kind, asked)]}
        if kind == "over":
            moments = [once(lambda m=m: sys.addaudithook(Killer(home, m))) for m in (0, 3, 7, 12, 18)]  # type: ignore[misc]
            told[kind]["files"] = moments
        told[kind]["replayed"] = len(replay(repo_id, source=samples.plain(), **way))
    return told


if __name__ == "__main__":
    json.dump(suffer(sys.stdin.buffer.read()), sys.stdout)
