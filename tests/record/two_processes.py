"""Run under torchrun: every case in one launch. Usage: two_processes.py DIRECTORY"""

import json
import sys
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback

from hf_prune.record import TrajectoryCallback
from tests.record.test_early_end import BEST, trained
from tests.record.test_weights import EVERY_STEP, HEADS
from tests.record.truth import CASES, run
from tests.toys import train, vectors

SKIPPED = {"dispatched stream"}  # with two processes it is the same as "stream"


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
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
