"""Run under torchrun: two machines without a common disk, each with its own directory. Usage: apart.py DIRECTORY"""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import Trainer, TrainerCallback, set_seed

from hf_prune import RecordingError, UnsupportedError, add_influence
from hf_prune._core.processes import Processes
from hf_prune.record import TrajectoryCallback
from hf_prune.record.gathering import gather_parts
from hf_prune.trajectory.files import LEDGER, part_path
from tests.record.test_full_disk import files_end_at
from tests.toys import Mlp, arguments, vectors

ROWS, STOPS = 37, 4
SETTINGS: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 4}


class Stop(TrainerCallback):
    """Ends both processes in the middle of the run."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STOPS:
            raise KeyboardInterrupt


def train(record: Path, out: Path, *callbacks: TrainerCallback, resume: str | None = None, **settings: Any) -> Any:
    set_seed(0)
    recording = TrajectoryCallback(record, window=1.0, snapshots_per_epoch=2, row_statistics=True)
    args = arguments(out, **SETTINGS | settings)
    trainer = Trainer(Mlp(), args, train_dataset=vectors(ROWS), callbacks=[recording, *callbacks])
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        recording._close()
    return trainer.model


def said(work: Any) -> str:
    try:
        work()
    except (RecordingError, UnsupportedError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def gathered_on_a_full_disk(directory: Path, processes: Processes) -> str:
    """The main process has no room for what the other one sends, twice."""
    own = directory / f"full-{processes.rank}"
    (own / LEDGER).mkdir(parents=True)
    if processes.rank == 1:
        for part in range(2):
            part_path(own, 1, part).write_bytes(bytes(200_000))
        return said(lambda: gather_parts(own, [1], processes))
    with files_end_at(60_000):
        return said(lambda: gather_parts(own, [1], processes))


def main(directory: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    own, told = directory / f"machine-{rank}", {}
    train(directory / "together", directory / "out")
    model = train(own / "t", directory / "out")
    scoring = {"model": model, "directions": 2}
    told["scoring"] = said(lambda: add_influence(vectors(ROWS), own / "t", **scoring))
    saving = {"save_strategy": "steps", "save_steps": STOPS}
    train(own / "killed", directory / "killed", Stop(), **saving)
    train(own / "resumed", directory / "resumed", Stop(), **saving)
    train(own / "resumed", directory / "resumed", resume=str(directory / "resumed" / f"checkpoint-{STOPS}"), **saving)
    other = [directory / "another", own / "t"][rank]
    told["another run"] = said(lambda: train(other, directory / "out"))
    told["full disk"] = gathered_on_a_full_disk(directory, Processes.current())
    dist.barrier()
    (directory / f"told-{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
