"""Saves over an older directory in forked processes, each killed at another moment or met by a full disk."""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from hf_prune.publish.replay import replay
from hf_prune.selection import prune
from tests.forks import Killer
from tests.publish import samples


def in_child(act: Any) -> int:
    """Returns how a forked process ended: its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except OSError:
            os._exit(3)
        except BaseException:
            os._exit(4)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def look(target: Path) -> dict[str, Any]:
    """What a reader finds: rows, what replay says of them, the card, and a file of somebody's own."""
    if not target.exists():
        return {"rows": None}
    rows = len(load_from_disk(str(target)))
    return {
        "rows": rows,
        "replayed": len(replay(str(target), source=samples.plain())),
        "card": f"This is {rows} of the 60 rows" in (target / "README.md").read_text(),
        "notes": (target / "notes.txt").read_text() if (target / "notes.txt").exists() else None,
    }


def suffer(directory: Path) -> dict[str, Any]:
    """Returns the end of each process and what it left, by whether the directory was there before."""
    old, new = prune(samples.scored(), keep=0.5), prune(samples.scored(seed=3), keep=0.25)
    told: dict[str, Any] = {"over": [], "new": [], "full": []}
    for kind in ("over", "new"):
        for moment in range(200):
            target = directory / f"{kind}-{moment}" / "half"
            target.parent.mkdir()
            if kind == "over":
                old.save_to_disk(target)
                (target / "notes.txt").write_text("mine")

            def killed(target: Path = target, moment: int = moment) -> None:
                sys.addaudithook(Killer(target.parent, moment))
                new.save_to_disk(target)

            status = in_child(killed)
            told[kind].append({"status": status} | look(target))
            if status == 0:
                break
            if moment % 5 == 0:  # what a killed process left does not disturb the next one
                new.save_to_disk(target)
                told[kind].append({"status": 0} | look(target))
    for limit in (1, 300, 1_000, 3_000, 4_000):
        target = directory / f"full-{limit}" / "half"
        old.save_to_disk(target)
        (target / "notes.txt").write_text("mine")

        def full(target: Path = target, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            new.save_to_disk(target)

        told["full"].append({"status": in_child(full), "left": sorted(os.listdir(target.parent))} | look(target))
    return told


if __name__ == "__main__":
    json.dump(suffer(Path(sys.argv[1])), sys.stdout)
