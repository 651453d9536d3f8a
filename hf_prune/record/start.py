"""The start of a recording: everything that must be known, agreed on and attached before the first step."""

from __future__ import annotations

import logging
import math
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_prune._core import compat
from hf_prune._core.processes import Processes
from hf_prune.record import describe, support
from hf_prune.record.hooks import Hooks
from hf_prune.record.optimizer import RecordedOptimizer
from hf_prune.record.recording import Recording
from hf_prune.record.row_ids import RowIds
from hf_prune.record.row_statistics import RowStatistics
from hf_prune.record.schedule import Snapshots, due_steps, most_at_once, planned_steps
from hf_prune.record.session import open_or_resume
from hf_prune.record.snapshot_writer import disk_warning, snapshot_bytes
from hf_prune.record.trainers import find_pairs
from hf_prune.record.writers import Writers, writes_parts
from hf_prune.trajectory.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The callback's arguments."""

    output_dir: Path
    window: float
    snapshots_per_epoch: float
    parameters: str | None
    id_column: str | None
    snapshot_dtype: str
    row_statistics: bool


@dataclass(frozen=True)
class Training:
    """
    What the Trainer hands to a callback when training begins.

    Args:
        args (`TrainingArguments`): The Trainer's.
        state (`TrainerState`): The Trainer's, at the start of training.
        model (`nn.Module`): The model inside all wrappers.
        optimizer (`Any`): The optimizer as accelerate prepared it.
        dataloader (`Any`): The training dataloader as accelerate prepared it.
        processing_class (`Any`): The Trainer's tokenizer or processor, if it has one.
    """

    args: TrainingArguments
    state: TrainerState
    model: nn.Module
    optimizer: Any
    dataloader: Any
    processing_class: Any

    @property
    def main(self) -> bool:
        """Whether this process is the main one."""
        return self.args.process_index == 0

    @property
    def steps_per_epoch(self) -> int:
        """As the Trainer counts them; a stream of unknown length is one long epoch."""
        try:
            batches = len(self.dataloader)
        except TypeError:
            return max(1, self.state.max_steps)
        return max(1, math.ceil(batches / self.args.gradient_accumulation_steps))


def start_recording(settings: Settings, training: Training, own_run: str | None) -> Recording:
    """
    Begins a recording, or continues one after a resume.

    Args:
        settings (`Settings`): The callback's arguments.
        training (`Training`): The run that begins.
        own_run (`str`, *optional*): A run of this callback that was begun and never ended.

    Raises:
        [`RecordingError`]: if the run cannot be recorded. Nothing is attached and no file is open then.
    """
    support.check_processes(training.args, training.optimizer.accelerator_state, training.model)
    processes = Processes.current()
    support.check_quantized(training.model)
    optimizer = RecordedOptimizer.of(training.optimizer, training.model, settings.parameters, processes)
    rows = RowIds.find(settings.id_column, training.args, training.dataloader)
    plan = (training.state.max_steps, training.steps_per_epoch, settings.window, settings.snapshots_per_epoch)
    manifest = _manifest(settings, training, optimizer, rows, window_start=planned_steps(*plan)[0])
    root, now = settings.output_dir, training.state.global_step
    session = open_or_resume(manifest, root, now, own_run, processes)
    manifest = session.manifest
    due = due_steps(*plan)
    snapshots = _snapshots(settings, training, due, session.snapshots)
    if training.main:
        best = training.args.metric_for_best_model is not None
        count = most_at_once(due, settings.window, best) + writes_parts(manifest, optimizer)
        _warn_if_disk_is_small(root, manifest, optimizer, count)
        _warn_of_early_stopping(training, settings.window)
    with ExitStack() as undo:  # for a start that fails half-way
        with processes.together():
            writers = Writers.open(root, manifest, training.args.process_index, session.part, optimizer, undo)
        statistics = RowStatistics() if manifest.row_statistics else None
        hooks = Hooks.attach(training.model, optimizer.trainable, manifest.label_names, statistics, undo)
        rows.attach(training.model, training.dataloader, undo)
        if now in snapshots.due and now not in snapshots.steps:
            writers.take_snapshot(now, optimizer, snapshots.add(now))
        return Recording(
            root,
            manifest,
            snapshots=snapshots,
            optimizer=optimizer,
            rows=rows,
            hooks=hooks,
            writers=writers,
            processes=processes,
            apart=session.apart,
            dataset=compat.base_dataloader(training.dataloader).dataset,
            skip=_batches_to_skip(training, manifest),
            undo=undo.pop_all(),
        )


def _snapshots(settings: Settings, training: Training, due: list[int], there: tuple[int, ...]) -> Snapshots:
    """Those that a resumed run finds stay, although it may plan others."""
    state = training.state
    found = Snapshots(settings.window, {*due, *there}, list(there), best=state.best_global_step)
    if not there:
        found.due.add(state.global_step)
    return found


def _manifest(
    settings: Settings, training: Training, optimizer: RecordedOptimizer, rows: RowIds, window_start: int
) -> Manifest:
    """What this run would write into an empty directory."""
    dataset = compat.base_dataloader(training.dataloader).dataset
    n_rows, columns, fingerprint = describe.describe_dataset(dataset, training.main)
    return describe.new_manifest(
        training.args,
        model=describe.describe_model(training.model),
        optimizer=support.describe_optimizer(optimizer.inner),
        parameters=optimizer.parameters,
        n_rows=n_rows,
        dataset_columns=columns,
        dataset_fingerprint=fingerprint,
        padding=describe.describe_padding(training.processing_class),
        collator=describe.describe_collator(training.dataloader),
        label_names=describe.label_names(training.args, training.model),
        unrecorded=optimizer.unrecorded(training.model),
        id_column=rows.id_column,
        per_device_train_batch_size=describe.batch_size(training.args, training.state),
        total_steps=training.state.max_steps,
        steps_per_epoch=training.steps_per_epoch,
        window_start=window_start,
        window=settings.window,
        snapshot_dtype=settings.snapshot_dtype,
        row_statistics=settings.row_statistics,
        pairs=find_pairs(training.args, training.model, columns),
        updates_before_start=optimizer.updates() or 0,
    )


def _warn_if_disk_is_small(root: Path, manifest: Manifest, optimizer: RecordedOptimizer, count: int) -> None:
    each = snapshot_bytes(manifest.n_parameters, manifest.snapshot_dtype, optimizer.has_second_moment)
    warning = disk_warning(each, count, shutil.disk_usage(root).free)
    if warning is not None:
        logger.warning(warning)


def _warn_of_early_stopping(training: Training, window: float) -> None:
    names = map(str, training.state.stateful_callbacks or ())  # of the callbacks whose state checkpoints hold
    if not any("EarlyStopping" in name for name in names):
        return
    logger.warning(
        f"This run may stop early (EarlyStoppingCallback): its window will be the last {window:.0%} of the steps that "
        "are made, to the nearest snapshot."
    )


def _batches_to_skip(training: Training, manifest: Manifest) -> int:
    """Batches of a resumed epoch that the Trainer draws again and throws away."""
    if training.args.ignore_data_skip:
        return 0
    return training.state.global_step % manifest.steps_per_epoch * training.args.gradient_accumulation_steps
