"""
Probes and verifies in forked processes, each killed at another moment (in a training too), and then again.
Usage: killed.py DIRECTORY
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_prune import Probe, prune, select
from hf_prune.cli.runs import verify
from tests.forks import Killer, ended, fork
from tests.toys import Mlp, arguments, vectors

NEVER = 10**9
OLD = {"an older": "result"}


class Moment(TrainerCallback):
    """Where a process can be killed in the midst of a training, as if a file were changed there."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            sys.audit("open", os.environ["PLACE"])


def make_trainer(train_dataset: Dataset, seed: int) -> Trainer:
    """The factory, which notes what it was asked for."""
    with calls_of(Path(os.environ["PLACE"])).open("a") as calls:
        calls.write(f"{seed}\n")
    options = arguments(os.environ["PLACE"], num_train_epochs=1, learning_rate=2e-2, seed=seed)
    return Trainer(Mlp(), options, train_dataset=train_dataset, callbacks=[Moment()])


def calls_of(place: Path) -> Path:
    return place.with_name(f"calls of {place.name}")


def scored() -> Dataset:
    rows, found = vectors(60), np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
    rows = rows.add_column("influence", found.tolist())
    return rows.add_column("influence_norm", np.linalg.norm(found, axis=1).tolist())


def probe(place: Path) -> Any:
    """Six trainings, whose results are kept."""
    selection = select(scored(), 0.5, probe=Probe(make_trainer, vectors(4, seed=1), cost=3, directory=place))
    return selection.keep_indices.tolist(), selection.certificate.to_dict()


def verification(place: Path) -> None:
    """Three trainings, and the file of what they gave."""
    verify(
        place.parent / "rows",
        place.parent / "pruned",
        "tests.verification.killed:make_trainer",
        place.parent / "eval",
        seeds=1,
        out=place / "verified.json",
        budget="epochs",
        metric="accuracy",
        random=True,
        json=False,
    )


def begun(place: Path) -> Path:
    place.mkdir()
    (place / "verified.json").write_text(json.dumps(OLD))
    (place / "mine.txt").write_text("mine")
    return place


def run(work: Callable[[Path], Any], place: Path, moment: int = NEVER) -> dict[str, Any]:
    """What a process left that is killed at this moment."""
    result = place.with_name("result")
    result.unlink(missing_ok=True)

    def watched() -> None:
        os.environ["PLACE"] = str(place)
        watch = Killer(place, moment)
        sys.addaudithook(watch)
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
            found = work(place)
        result.write_text(json.dumps([found, moment - watch.left]))

    status = ended(fork(watched))
    calls = calls_of(place)
    trainings = len(calls.read_text().splitlines()) if calls.exists() else 0
    calls.unlink(missing_ok=True)
    found, moments = json.loads(result.read_text()) if status == 0 else (None, 0)
    known = [
        json.loads(file.read_text(), object_hook=without_seconds)
        for file in sorted(place.rglob("*.json"))
        if len(file.stem) == 64 and not file.parent.name.startswith(".")
    ]
    return {
        "status": status,
        "trainings": trainings,
        "moments": moments,
        "found": found,
        "known": known,
        "verified": json.loads((place / "verified.json").read_text(), object_hook=without_seconds),
        "files": sorted(str(file.relative_to(place)) for file in place.rglob("*")),
    }


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "seconds"}


def suffer(directory: Path, work: Callable[[Path], Any], moments: Callable[[int], Iterable[int]]) -> dict[str, Any]:
    whole = run(work, begun(directory / work.__name__))
    tried = []
    for moment in moments(whole["moments"]):
        place = begun(directory / f"{work.__name__}-{moment}-")
        killed = run(work, place, moment)
        tried.append({"killed": killed, "again": run(work, place)})
    return {"whole": whole, "tried": tried}


def of_a_probe(count: int) -> list[int]:
    """The first and the last moment, and all from within a training to within the next one."""
    one = count // 6
    return [0, *range(2 * one, 3 * one + 1), count - 1]


def of_a_verification(count: int) -> list[int]:
    """All: within the three trainings, while each result is kept, and while the whole one is written."""
    return list(range(count))


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Path(sys.argv[1])
    scored().save_to_disk(here / "rows")
    prune(scored(), keep=0.5).save_to_disk(here / "pruned")
    vectors(6, seed=1).save_to_disk(here / "eval")
    warm = Trainer(Mlp(), arguments(here / "scratch"), train_dataset=scored())  # what it imports, forks have then
    warm.create_optimizer()
    print(
        json.dumps(
            {
                "probe": suffer(here, probe, of_a_probe),
                "verify": suffer(here, verification, of_a_verification),
            }
        )
    )
