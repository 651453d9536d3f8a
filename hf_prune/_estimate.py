"""What recording and scoring a run will cost, told before training begins."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import nn
from transformers import TrainingArguments

from hf_prune.influence.cost import count_vjps, pass_memory, scoring_cost
from hf_prune.record.ledger_writer import row_bytes
from hf_prune.record.schedule import due_steps, most_at_once, planned_steps
from hf_prune.record.snapshot_writer import snapshot_bytes
from hf_prune.trajectory.ledger import LedgerRow


@dataclass(frozen=True)
class CostEstimate:
    """
    What a record will take.

    Args:
        total_steps (`int`): Optimizer steps of the run.
        snapshots (`int`): Snapshots in its window, if it ends as planned.
        parameters (`int`): Length p of the flat parameter vector.
        ledger_bytes (`int`): Disk space of the ledger, all processes together.
        snapshot_bytes (`int`): Disk space of one snapshot.
        disk_bytes (`int`): Disk space of the whole record.
        peak_disk_bytes (`int`): The most that it takes while training, with the snapshots for a run that ends
            early and, with a `metric_for_best_model`, those for the best checkpoint.
        memory_bytes (`int`): Host memory that the main process needs on top of training, at its peak.
        engine (`str`): What `add_influence(engine="auto")` will choose: `"dense"` or `"projected"`.
        scoring_disk_bytes (`int`): Disk space of sketches and influence columns, on top of `disk_bytes`; the copy of
            the dataset's own columns that `Dataset.map` writes as well is not counted.
        least_scoring_disk_bytes (`int`): The same where the sketches would take more than half of the free disk: then
            only those between two snapshots are there at a time.
        scoring_memory_bytes (`int`): Memory that scoring takes on top of the model; the activations of its batches are
            in it where the length of rows is known.
        scoring_steps (`float`): Work of scoring in units of training steps; a guess, right within a factor of about 3.
        scoring_seconds (`float`, *optional*): The same in seconds, if the time of a training step was given.
    """

    total_steps: int
    snapshots: int
    parameters: int
    ledger_bytes: int
    snapshot_bytes: int
    disk_bytes: int
    peak_disk_bytes: int
    memory_bytes: int
    engine: str
    scoring_disk_bytes: int
    least_scoring_disk_bytes: int
    scoring_memory_bytes: int
    scoring_steps: float
    scoring_seconds: float | None


def estimate(
    model: nn.Module,
    args: TrainingArguments,
    n_rows: int,
    *,
    window: float = 0.5,
    snapshots_per_epoch: float = 1,
    parameters: str | None = None,
    snapshot_dtype: str = "float32",
    directions: int = 64,
    step_seconds: float | None = None,
    length: int | None = None,
) -> CostEstimate:
    """
    Estimates the disk space, memory and time that a record and its scoring will take.

    Args:
        model (`nn.Module`):
            The model that will be trained.
        args (`transformers.TrainingArguments`):
            The Trainer's arguments.
        n_rows (`int`):
            Rows of the training dataset.
        window (`float`, *optional*, defaults to 0.5):
            As in [`TrajectoryCallback`], like the next three.
        snapshots_per_epoch (`float`, *optional*, defaults to 1):
            Snapshots in an epoch of the window.
        parameters (`str`, *optional*):
            Regular expression for the parameters to keep.
        snapshot_dtype (`str`, *optional*, defaults to `"float32"`):
            `"float32"` or `"bfloat16"`.
        directions (`int`, *optional*, defaults to 64):
            As in `add_influence`.
        step_seconds (`float`, *optional*):
            Time of one training step, to turn the guess of scoring time into seconds.
        length (`int`, *optional*):
            Tokens or patches of a row, by which the memory of its activations is told. By default the `max_length` of
            trl's arguments; without it activations are left out.

    Returns:
        [`CostEstimate`]
    """
    if n_rows < 1:
        raise ValueError(f"n_rows must be at least 1, got {n_rows}.")
    steps_per_epoch, total_steps = _steps(args, n_rows)
    plan = (total_steps, steps_per_epoch, window, snapshots_per_epoch)
    planned = planned_steps(*plan)
    most = most_at_once(due_steps(*plan), window, best=args.metric_for_best_model is not None)
    shapes = [
        tuple(p.shape)
        for name, p in model.named_parameters()
        if p.requires_grad and (parameters is None or re.search(parameters, name))
    ]
    size = sum(map(math.prod, shapes))
    snapshot = snapshot_bytes(size, snapshot_dtype, second_moment="adam" in args.optim)
    ledger = total_steps * args.world_size * _row_bytes(args, n_rows, total_steps)
    scoring = scoring_cost(
        shapes,
        count_vjps(model),
        pass_memory(
            model,
            args.device,
            args.per_device_train_batch_size,
            length or getattr(args, "max_length", None) or 0,
        ),
        rows=n_rows,
        directions=directions,
        steps_per_epoch=steps_per_epoch,
        visits_per_step=_visits_per_step(args, n_rows, steps_per_epoch),
        marks=planned,
    )
    return CostEstimate(
        total_steps=total_steps,
        snapshots=len(planned),
        parameters=size,
        ledger_bytes=ledger,
        snapshot_bytes=snapshot,
        disk_bytes=ledger + len(planned) * snapshot,
        peak_disk_bytes=ledger + most * snapshot,
        memory_bytes=snapshot,  # the buffer
        engine=scoring.engine,
        scoring_disk_bytes=scoring.disk_bytes,
        least_scoring_disk_bytes=scoring.least_disk_bytes,
        scoring_memory_bytes=scoring.memory_bytes,
        scoring_steps=scoring.steps,
        scoring_seconds=None if step_seconds is None else scoring.steps * step_seconds,
    )


def _steps(args: TrainingArguments, n_rows: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the run, as the Trainer counts them."""
    rows_a_batch = args.train_batch_size * args.world_size
    batches = n_rows // rows_a_batch if args.dataloader_drop_last else math.ceil(n_rows / rows_a_batch)
    steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return steps_per_epoch, total


def _visits_per_step(args: TrainingArguments, n_rows: int, steps_per_epoch: int) -> float:
    whole = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return min(float(whole), n_rows / steps_per_epoch)


def _row_bytes(args: TrainingArguments, n_rows: int, total_steps: int) -> int:
    """A row with the widest ids and steps, and numbers of full width."""
    micro_batches = args.gradient_accumulation_steps
    row = LedgerRow(
        step=total_steps,
        epoch=1 / 3,
        ids=[[n_rows] * args.train_batch_size] * micro_batches,
        scales=[1.0] * micro_batches,
        losses=[1 / 3] * micro_batches,
        num_items=[None] * micro_batches,
        learning_rates=[1 / 300, 1 / 300],
        grad_norm=1 / 3,
        skipped=False,
    )
    return row_bytes(row)
