"""Scores a run in forked processes, each killed at another moment, then scores again. Usage: killed.py DIRECTORY"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.influence.sketch import segments
from tests import toys
from tests.forks import Killer, ended, fork, in_two

ROWS, HELD_OUT = toys.vectors(40), toys.vectors(10, seed=9)
EVERY = 10**9
ENGINES = ("dense", "projected", "segments")
MOMENTS = {"alone": 6, "main": 3, "other": 2}
"""Of a scoring by one process, and of either of two."""


def train(directory: Path) -> None:
    torch.manual_seed(0)
    model = toys.Mlp()
    toys.train(model, ROWS, directory / "out", [TrajectoryCallback(directory / "t")], learning_rate=3e-3)
    torch.save(model.state_dict(), directory / "model.pt")


def score(place: Path, engine: str, found: Path, watch: Killer | None = None) -> None:
    """Adds the influence columns to the rows and saves their values; `"segments"` are sketched on a small disk."""
    model = toys.Mlp()
    model.load_state_dict(torch.load(place / "model.pt", weights_only=True))
    if watch is not None:
        sys.addaudithook(watch)
    if engine == "segments":
        engine, segments.KEPT_SHARE = "projected", 0.0
    settings: dict[str, Any] = {"directions": 6, "curvature": "gauss-newton", "batch_size": 16, "engine": engine}
    scored = add_influence(ROWS, place / "t", model=model, eval_dataset=HELD_OUT, **settings)
    np.save(found, np.column_stack([np.array(scored["influence"]), scored["influence_eval_loss"]]))
    if watch is not None:
        found.with_suffix(".moments").write_text(str(EVERY - watch.left))


def damaged(scores: Path) -> list[str]:
    """Files that are not whole, of those that have their names."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_file,
        ".json": lambda file: json.loads(file.read_text()),
        ".arrow": lambda file: Dataset.from_file(str(file)),
    }
    found = []
    for file in scores.rglob("*"):
        if file.is_file() and not file.name.startswith(".") and file.suffix in readers:
            try:
                readers[file.suffix](file)
            except Exception as error:
                found.append(f"{file.name}: {error}")
    return found


def names(scores: Path) -> list[str]:
    return sorted(str(file.relative_to(scores)) for file in scores.rglob("*"))


def once(run: Path, place: Path, work: Callable[[Path, int | None], Any], moment: int) -> dict[str, Any]:
    """Kills one scoring, looks at what it left, and scores again."""
    shutil.copytree(run, place)
    ends = work(place, moment)
    broken = damaged(place / "t" / "scores")
    again = work(place, None)
    found = place / "0.npy"
    values = np.load(found).tolist() if found.exists() else None
    return {"ends": ends, "damaged": broken, "again": again, "values": values, "names": names(place / "t" / "scores")}


def alone(engine: str) -> Callable[[Path, int | None], Any]:
    def work(place: Path, moment: int | None) -> Any:
        watch = None if moment is None else Killer(place / "t", moment)
        return [ended(fork(lambda: score(place, engine, place / "0.npy", watch)))]

    return work


def together(engine: str, victim: int) -> Callable[[Path, int | None], Any]:
    def work(place: Path, moment: int | None) -> Any:
        def one(rank: int) -> None:
            watch = Killer(place / "t", moment) if moment is not None and rank == victim else None
            score(place, engine, place / f"{rank}.npy", watch)

        return in_two(one)

    return work


def main(directory: Path) -> dict[str, Any]:
    run = directory / "run"
    run.mkdir()
    assert ended(fork(lambda: train(run))) == 0
    told: dict[str, Any] = {}
    for engine in ENGINES:
        ways = {"alone": alone(engine), "main": together(engine, 0), "other": together(engine, 1)}
        for way, work in ways.items():
            whole = once(run, directory / f"{engine}-{way}", work, EVERY)
            rank = int(way == "other")
            last = int((directory / f"{engine}-{way}" / f"{rank}.moments").read_text())
            moments = np.linspace(0, last - 1, MOMENTS[way]).astype(int).tolist()
            tried = [once(run, directory / f"{engine}-{way}-{moment}", work, moment) for moment in moments]
            told[f"{engine} {way}"] = {"moments": last, "whole": whole, "tried": tried}
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]))))
