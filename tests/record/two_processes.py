"""Run under torchrun: every case in one launch. Usage: two_processes.py DIRECTORY"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_prune import RecordingError
from hf_prune._core.processes import Processes
from hf_prune.record import TrajectoryCallback
from tests.record.test_early_end import BEST, trained
from tests.record.test_full_disk import files_end_at
from tests.record.test_weights import EVERY_STEP, HEADS
from tests.record.truth import CASES, run
from tests.toys import Mlp, train, vectors

SKIPPED = {"dispatched stream"}  # with two processes it is the same as "stream"
AGREED = {"optim": "sgd", "num_train_epochs": 3, "per_device_train_batch_size": 4}


class Meetings(TrainerCallback):
    """Notes the steps at which processes agreed on going on, and how far the run came."""

    def __init__(self) -> None:
        self.count, self.before, self.steps, self.last = 0, 0, [], 0
        agree = Processes.first_failure

        def counted(processes: Processes, own: str | None) -> str | None:
            self.count += 1
            return agree(processes, own)

        Processes.first_failure = counted

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before, self.last = self.count, state.global_step + 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += [state.global_step] * (self.count > self.before)


def agreements(directory: Path) -> None:
    """A run in which nothing fails, and two in which the other process cannot go on with its ledger."""
    rank = torch.distributed.get_rank()
    for name, room in (("raise", None), ("full-raise", 700), ("full-stop-recording", 700)):
        place, said, meetings = directory / f"agreed-{name}", "", Meetings()
        callback = TrajectoryCallback(place / "t", on_error=name.removeprefix("full-"))
        with files_end_at(room) if room and rank == 1 else nullcontext():
            try:
                train(Mlp(), vectors(96), place / "out", [callback, meetings], **AGREED)
            except RecordingError as error:
                said = str(error)
        told = {"said": said, "met": meetings.steps, "last": meetings.last}
        (place / f"told-{rank}.json").write_text(json.dumps(told))


def main(directory: Path) -> None:
    for name, case in CASES.items():
        if name in SKIPPED:
            continue
        place = directory / name.replace(" ", "-")
        model = run(case, place, num_train_epochs=2)
        rank = torch.distributed.get_rank()
        (place / f"seen-{rank}.json").write_text(json.dumps(model.seen))
    for head, kind in HEADS.items():
        for accumulation in (1, 3):
            place = directory / f"weights-{head}-{accumulation}"
            callback = TrajectoryCallback(place / "trajectory", **EVERY_STEP)
            settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4}
            train(
                kind(),
                vectors(40),
                place / "out",
                [callback],
                optim="sgd",
                num_train_epochs=2,
                max_grad_norm=0.5,
                learning_rate=0.1,
                **settings,
            )
    place = directory / "early"
    stopped = trained(place, [EarlyStoppingCallback(3)], num_train_epochs=50, learning_rate=0.03, **BEST)
    ends = [stopped.state.best_global_step, stopped.state.global_step]
    (place / f"ends-{torch.distributed.get_rank()}.json").write_text(json.dumps(ends))
    case, place = CASES["uneven last batch"], directory / "resumed"
    run(case, place, save_strategy="steps", save_steps=3, num_train_epochs=2)
    model = run(case, place, resume=str(place / "out" / "checkpoint-3"), num_train_epochs=2)
    (place / f"seen-{torch.distributed.get_rank()}.json").write_text(json.dumps(model.seen))
    agreements(directory)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
