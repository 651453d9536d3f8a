"""Pairs of processes that wait for each other longer than their process group does. Usage: waiting.py DIRECTORY"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hf_prune import TrajectoryCallback, add_influence
from hf_prune._core.processes import Processes
from hf_prune.record import describe
from hf_prune.record.snapshot_writer import SnapshotWriter
from tests import toys
from tests.forks import in_two
from tests.record.sharded import BERT, allow_on_cpu

TIMEOUT, WORK, SLOW = timedelta(seconds=1), 2.5, 5.0
ROWS = 24


def slow_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The model's own, but rank 0 takes its time."""
    time.sleep(0.02 * (os.environ["RANK"] == "0"))
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def barrier(rank: int, alone: Callable[[], None]) -> None:
    processes = Processes.current()
    if rank == 0:
        alone()
    processes.barrier()


def broadcast(rank: int, alone: Callable[[], None]) -> None:
    processes = Processes.current()
    if rank == 0:
        alone()
    assert processes.broadcast(10 + rank) == 10


def main_first(rank: int, alone: Callable[[], None]) -> None:
    with Processes.current().main_first():
        if rank == 0:
            alone()


def late(rank: int, alone: Callable[[], None]) -> None:
    """Before the processes have met at all."""
    if rank == 0:
        alone()
    Processes.current().barrier()


def the_launchs_own(rank: int, alone: Callable[[], None]) -> None:
    """What it would be without."""
    if rank == 0:
        alone()
    dist.barrier()


def reading_rows(rank: int, alone: Callable[[], None], directory: Path) -> None:
    """The main process reads all rows before the record begins."""
    original = describe.column_digests

    def column_digests(*args: Any, **kwargs: Any) -> Any:
        alone()
        return original(*args, **kwargs)

    describe.column_digests = column_digests  # type: ignore[attr-defined]
    toys.train(toys.Mlp(), toys.vectors(ROWS), directory / "out", [TrajectoryCallback(directory / "t")])


def slow_disk(rank: int, directory: Path) -> None:
    """The main process takes its time to write what all processes gather."""
    original = SnapshotWriter._write

    def write(*args: Any) -> None:
        time.sleep(SLOW)
        original(*args)

    SnapshotWriter._write = write  # type: ignore[method-assign]
    allow_on_cpu()
    callback = TrajectoryCallback(directory / "t", window=1.0, snapshots_per_epoch=2)
    toys.train(toys.bert(), toys.tokens(ROWS), directory / "out", [callback], num_train_epochs=1, **BERT)


def scoring(rank: int, engine: str, directory: Path) -> None:
    torch.manual_seed(0)
    model, rows = toys.Mlp(), toys.vectors(ROWS)
    held_out = toys.vectors(140, seed=9)
    toys.train(model, rows, directory / "out", [TrajectoryCallback(directory / "t")])
    asked: dict[str, Any] = {"directions": 4, "engine": engine, "loss": slow_loss, "batch_size": 2}
    scored = add_influence(rows, directory / "t", model=model, eval_dataset=held_out, **asked)
    (directory / f"{engine}-{rank}.json").write_text(json.dumps(scored["influence_eval_loss"][:]))


FAULTS: dict[str, Callable[[], None]] = {
    "works": lambda: time.sleep(WORK),
    "fails": lambda: fail(),
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def fail() -> None:
    raise OSError("the disk is full")


def main(directory: Path) -> dict[str, Any]:
    """How both processes ended, and what the second one said."""
    told: dict[str, Any] = {}

    def tried(name: str, work: Callable[[int], None], timeout: timedelta = TIMEOUT) -> None:
        files = [directory / f"{name}-{rank}" for rank in range(2)]
        ends = in_two(work, timeout, lambda rank: files[rank])
        told[name] = {"ends": ends, "words": files[1].read_text() if files[1].exists() else ""}

    for way in (barrier, broadcast, main_first):
        for fault, alone in FAULTS.items():
            tried(f"{way.__name__} {fault}", lambda rank: way(rank, alone))  # noqa: B023
    tried("late works", lambda rank: late(rank, FAULTS["works"]))
    tried("the launch's own", lambda rank: the_launchs_own(rank, FAULTS["works"]))
    tried("recording", lambda rank: reading_rows(rank, FAULTS["works"], directory / "slow"))
    tried("slow disk", lambda rank: slow_disk(rank, directory / "disk"), timedelta(seconds=SLOW - 2))
    for engine in ("dense", "projected"):
        place = directory / engine
        tried(engine, lambda rank: scoring(rank, engine, place))  # noqa: B023
        scores = [place / f"{engine}-{rank}.json" for rank in range(2)]
        told[engine]["found"] = [json.loads(file.read_text()) for file in scores if file.exists()]
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]))))
