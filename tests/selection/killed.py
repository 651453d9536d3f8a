"""
Saves selections in forked processes, each killed at another moment or met by a full disk, and prunes in some that are
killed. Usage: killed.py DIRECTORY
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from datasets import Dataset
from joblib import parallel_config

from hf_prune.selection import Selection, prune, select
from tests.forks import ended, fork, killed_at
from tests.selection.scored import scored

WHOLE = ["dropped_ids.parquet", "kept_ids.parquet", "notes.txt", "rows.parquet", "selection.json"]


def state(place: Path, old: Selection, new: Selection) -> str:
    """What a reader finds."""
    if not (place / "selection.json").exists() and not (place / ".whole").exists():
        return "nothing"
    found = Selection.load(place)
    return "new" if found == new else "old" if found == old else "other"


def saving(directory: Path, over: bool) -> list[dict[str, Any]]:
    """Every moment of a save, in the directory of an older selection or in a new one."""
    old, new = select(scored(), 0.5), select(scored(), 0.25, seed=1)
    told = []
    for moment in range(0, 400, 2 if over else 5):
        place = directory / f"{over}-{moment}"
        if over:
            old.save(place)
            (place / "notes.txt").write_text("mine")
        status = killed_at(moment, place, lambda: new.save(place))  # noqa: B023
        one = {"status": status, "state": state(place, old, new)}
        if status == 0 or moment % 10 == 0:  # what is left does not disturb the next one
            new.save(place)
            (place / "notes.txt").write_text("mine")
            one |= {"again": state(place, old, new), "left": sorted(os.listdir(place)) == WHOLE}
        told.append(one)
        if status == 0:
            break
    return told


def full(directory: Path) -> list[dict[str, Any]]:
    """The kernel refuses files beyond a size."""
    old, new = select(scored(), 0.5), select(scored(), 0.25, seed=1)
    told = []
    for limit in (1, 1000, 2000):
        place = directory / f"full-{limit}"
        old.save(place)
        words = refused(lambda: new.save(place), limit)  # noqa: B023
        told.append({"words": words, "state": state(place, old, new), "left": sorted(os.listdir(place))})
    return told


def refused(act: Callable[[], Any], limit: int) -> str:
    """What `act` says in a process whose files end at `limit` bytes."""
    reading, writing = os.pipe()  # for a file would end too

    def say() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            act()
        except OSError as error:
            os.write(writing, str(error).encode())

    child = fork(say)
    os.close(writing)
    ended(child)
    words = os.read(reading, 4096).decode()
    os.close(reading)
    return words


def pruning(directory: Path) -> dict[str, Any]:
    """Prunes rows that lie on the disk; a killed process changed nothing, and the next one finds the same."""
    scored(2000).save_to_disk(directory / "rows")
    before = {str(file): file.read_bytes() for file in (directory / "rows").rglob("*") if file.is_file()}

    def work() -> None:
        prune(Dataset.load_from_disk(str(directory / "rows")), keep=0.5)

    ends = [killed_at(moment, directory / "rows", work) for moment in range(3)]
    after = {str(file): file.read_bytes() for file in (directory / "rows").rglob("*") if file.is_file()}
    return {"ends": ends, "same": before == after}


def lost_worker() -> dict[str, Any]:
    """Kills a worker of loky while it selects."""
    rows = scored(6000, k=32)

    def kill() -> None:
        while True:
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    if any("popen_loky" in part for part in child.cmdline()):
                        time.sleep(1)
                        child.kill()
                        return
            time.sleep(0.01)

    told: dict[str, Any] = {}
    with parallel_config("loky", n_jobs=2):
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        try:
            while killer.is_alive():
                select(rows, 0.5, buckets=8, difficulty=None)
        except Exception as error:
            told["words"] = f"{type(error).__name__}: {error}"
        killer.join()
        again = select(rows, 0.5, buckets=8, difficulty=None)
    told["same"] = bool(again == select(rows, 0.5, buckets=8, difficulty=None))
    return told


if __name__ == "__main__":
    here = Path(sys.argv[1])
    print(
        json.dumps(
            {
                "over": saving(here, over=True),
                "new": saving(here, over=False),
                "full": full(here),
                "pruning": pruning(here),
                "worker": lost_worker(),
            }
        )
    )
