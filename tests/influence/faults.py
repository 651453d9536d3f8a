"""What goes wrong around a scoring, in forked processes. Usage: faults.py DIRECTORY"""

import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_prune import Trajectory, TrajectoryCallback
from hf_prune.selection import prune, select
from tests import toys
from tests.forks import ended, fork, in_two
from tests.influence.killed import ROWS, damaged, names, score, train
from tests.publish import samples

NOBODY = 65534
PAIRS = ("dense-dense", "projected-projected", "segments-segments", "dense-projected", "projected-segments")
"""Engines of two processes that score at the same time."""


def said(act: Callable[[], Any], file: Path) -> str:
    """The error of `act` in a forked process."""
    ended(fork(act, file))
    return file.read_text() if file.exists() else ""


def at_once(directory: Path) -> dict[str, Any]:
    """Two processes that know nothing of each other score the same run, in the same way and in two ways."""
    told: dict[str, Any] = {}
    for pair in PAIRS:
        engines, place = pair.split("-"), directory / pair
        shutil.copytree(directory / "run", place)
        children = [fork(lambda n=n, e=e: score(place, e, place / f"{n}.npy")) for n, e in enumerate(engines)]  # type: ignore[misc]  # noqa: B023
        told[pair] = {
            "ends": [ended(child) for child in children],
            "values": [np.load(place / f"{n}.npy").tolist() for n in range(2)],
            "damaged": damaged(place / "t" / "scores"),
            "names": names(place / "t" / "scores"),
        }
    return told


def clocks(directory: Path) -> dict[str, Any]:
    """Files' times go backwards and forwards: the record is read as before, and scores come from where they were."""
    place = directory / "clocks"
    shutil.copytree(directory / "dense-dense", place)
    before = Trajectory.open(place / "t")
    kept = {file: file.read_bytes() for file in (place / "t").rglob("*.arrow")}
    for number, file in enumerate(sorted(place.rglob("*"))):
        os.utime(file, (0, 0) if number % 2 else (2**32, 2**32))
    status = ended(fork(lambda: score(place, "dense", place / "again.npy")))
    after = Trajectory.open(place / "t")
    return {
        "status": status,
        "same": before.digest == after.digest and before.snapshot_steps == after.snapshot_steps,
        "kept": all(file.read_bytes() == content for file, content in kept.items()),
        "values": np.load(place / "again.npy").tolist(),
    }


def as_nobody(act: Callable[[], Any]) -> Callable[[], Any]:
    def work() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        act()

    return work


def read_only(directory: Path) -> dict[str, str]:
    """A user who may read all of it and write none of it."""
    home = Path(tempfile.mkdtemp())  # the directories above pytest's are root's alone
    scored, place, free, out = (home / name for name in ("scored", "run", "free", "words"))
    shutil.copytree(directory / "dense-dense", scored)
    shutil.copytree(directory / "run", place)
    for folder, mode in ((home, 0o755), (free, 0o777), (out, 0o777)):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    pruned, selection = prune(samples.scored(), keep=0.5), select(samples.scored(), 0.5)

    def recording() -> None:
        toys.train(toys.Mlp(), ROWS, free / "out", [TrajectoryCallback(place / "record")])

    acts: dict[str, Callable[[], Any]] = {
        "scoring": lambda: score(place, "projected", free / "1.npy"),
        "scored": lambda: score(scored, "dense", free / "2.npy"),
        "recording": recording,
        "selection": lambda: selection.save(place / "selection"),
        "rows": lambda: pruned.save_to_disk(place / "rows"),
    }
    told = {name: said(as_nobody(act), out / name) for name, act in acts.items()}
    shutil.rmtree(home)
    return told


def missing_rank(directory: Path) -> dict[str, str]:
    """The ledger of one of two processes is not there, after the run and after a run that was killed."""
    place, told = directory / "ranks", {}
    assert in_two(lambda rank: train(place)) == [0, 0]
    (place / "t" / "ledger" / "rank-00001-part-000.jsonl").unlink()
    manifest = place / "t" / "manifest.json"
    for complete in (True, False):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": complete}))
        told[str(complete)] = said(lambda: Trajectory.open(place / "t"), directory / f"missing-{complete}")
    return told


def diverged(directory: Path) -> dict[str, str]:
    """Losses and gradients become NaN while the run is recorded."""
    place = directory / "nan"
    place.mkdir()

    def record() -> None:
        logging.getLogger("hf_prune").addHandler(logging.FileHandler(place / "warnings.txt"))
        torch.manual_seed(0)
        model = toys.Mlp()
        toys.train(model, ROWS, place / "out", [TrajectoryCallback(place / "t")], learning_rate=1e38, max_grad_norm=0)
        torch.save(model.state_dict(), place / "model.pt")

    told = {"recording": said(record, place / "recording.txt")}
    told["warnings"] = (place / "warnings.txt").read_text()
    for engine in ("dense", "projected"):
        told[engine] = said(lambda: score(place, engine, place / "x.npy"), place / f"{engine}.txt")  # noqa: B023
    return told


def main(directory: Path) -> dict[str, Any]:
    (directory / "run").mkdir()
    assert ended(fork(lambda: train(directory / "run"))) == 0
    told: dict[str, Any] = {"at once": at_once(directory), "clocks": clocks(directory)}
    told["read-only"] = read_only(directory) if os.getuid() == 0 else None
    return told | {"missing rank": missing_rank(directory), "diverged": diverged(directory)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps(main(Path(sys.argv[1]))))
