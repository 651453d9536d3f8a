"""What recording and scoring a run will cost, told before training begins."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import nn
from transformers import TrainingArguments

from hf_prune.record.ledger import LedgerRow, row_bytes
from hf_prune.record.snapshots import DTYPES, planned_steps

# In units of a training step, for 64 directions: a step of the sweep, and a batch of per-example gradients.
_SWEEP_STEP = 15.0
_GRADIENT_BATCH = 2.0
_SEGMENTS = 2
# Vectors of the parameters' length that a sweep holds for each direction: its state, and what curvature takes.
_VECTORS_PER_DIRECTION = 8


@dataclass(frozen=True)
class Estimate:
    """
    What a record will take.

    Args:
        total_steps (`int`): Optimizer steps of the run.
        snapshots (`int`): Snapshots in its window.
        parameters (`int`): Length p of the flat parameter vector.
        ledger_bytes (`int`): Disk space of the ledger, all processes together.
        snapshot_bytes (`int`): Disk space of one snapshot.
        disk_bytes (`int`): Disk space of the whole record.
        memory_bytes (`int`): Host memory that the main process needs on top of training, at its peak.
        scoring_memory_bytes (`int`): Memory that the dense sweep would take for the directions asked about;
            sketches, which larger models get by themselves, take far less.
        scoring_steps (`float`): Work of scoring in units of training steps; a guess, right within a factor of about 3.
        scoring_seconds (`float`, *optional*): The same in seconds, if the time of a training step was given.
    """

    total_steps: int
    snapshots: int
    parameters: int
    ledger_bytes: int
    snapshot_bytes: int
    disk_bytes: int
    memory_bytes: int
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
) -> Estimate:
    """
    Tells disk space, memory and time that a record and its scoring will take.

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

    Returns:
        [`Estimate`]
    """
    if n_rows < 1:
        raise ValueError(f"n_rows must be at least 1, got {n_rows}.")
    steps_per_epoch, total_steps = _steps(args, n_rows)
    planned = planned_steps(total_steps, steps_per_epoch, window, snapshots_per_epoch)
    size = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.requires_grad and (parameters is None or re.search(parameters, name))
    )
    snapshot = snapshot_bytes(size, snapshot_dtype, second_moment=args.optim.startswith("adam"))
    ledger = total_steps * args.world_size * _row_bytes(args, n_rows, total_steps)
    scoring = (total_steps - planned[0]) * _SWEEP_STEP + _SEGMENTS * steps_per_epoch * _GRADIENT_BATCH
    return Estimate(
        total_steps=total_steps,
        snapshots=len(planned),
        parameters=size,
        ledger_bytes=ledger,
        snapshot_bytes=snapshot,
        disk_bytes=ledger + len(planned) * snapshot,
        memory_bytes=2 * snapshot,  # the buffer, and the bytes that are being written
        scoring_memory_bytes=scoring_bytes(size, directions),
        scoring_steps=scoring,
        scoring_seconds=None if step_seconds is None else scoring * step_seconds,
    )


def snapshot_bytes(size: int, dtype: str, second_moment: bool) -> int:
    """Disk space of one snapshot of `size` parameters."""
    return size * DTYPES[dtype].itemsize * (2 if second_moment else 1)


def scoring_bytes(size: int, directions: int) -> int:
    """Memory that a sweep of `directions` over `size` parameters needs, the held-out loss's direction included."""
    return (directions + 1) * direction_bytes(size)


def direction_bytes(size: int) -> int:
    """Memory that a sweep needs for one direction over `size` parameters."""
    return _VECTORS_PER_DIRECTION * size * 4


def disk_warning(each: int, count: int, free: int) -> str | None:
    """What to tell the user if `count` snapshots of `each` bytes do not fit into `free` bytes; else `None`."""
    if each * count <= free:
        return None
    return (
        f"{count} snapshots of {each / 1e9:.2f} GB each will not fit on the disk, which has {free / 1e9:.2f} GB left: "
        "free some, or record fewer parameters, a smaller window, or snapshot_dtype='bfloat16'."
    )


def _steps(args: TrainingArguments, n_rows: int) -> tuple[int, int]:
    """Optimizer steps of an epoch and of the run, as the Trainer counts them."""
    rows_a_batch = args.train_batch_size * args.world_size
    batches = n_rows // rows_a_batch if args.dataloader_drop_last else math.ceil(n_rows / rows_a_batch)
    steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return steps_per_epoch, total


def _row_bytes(args: TrainingArguments, n_rows: int, total_steps: int) -> int:
    """A row with the widest ids and steps, and numbers of full width."""
    micro_batches = args.gradient_accumulation_steps
    row = LedgerRow(
        step=total_steps,
        epoch=1 / 3,
        ids=[[n_rows] * args.train_batch_size] * micro_batches,
        scales=[1.0] * micro_batches,
        num_items=[None] * micro_batches,
        learning_rates=[1 / 300, 1 / 300],
        grad_norm=1 / 3,
        skipped=False,
    )
    return row_bytes(row)
