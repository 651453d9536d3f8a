"""One training run under recording, on one process: the taps, the ledger and the snapshots between two events."""

from __future__ import annotations

import logging
import math
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_prune._core import compat
from hf_prune.errors import RecordingError
from hf_prune.record import describe, session, support
from hf_prune.record.batches import ID_COLUMN, IdColumn, SamplerQueue, column_values
from hf_prune.record.drafts import HostCopy, MicroDraft, StepDraft
from hf_prune.record.ledger_writer import LedgerWriter
from hf_prune.record.row_statistics import RowStatistics
from hf_prune.record.session import write_manifest
from hf_prune.record.snapshot_writer import SnapshotWriter, disk_warning, planned_steps, snapshot_bytes
from hf_prune.record.weights import GradNormTap, LossTap
from hf_prune.trajectory.files import STATISTICS_DIRECTORY, part_path, snapshot_paths
from hf_prune.trajectory.snapshots import PARAMETERS, SECOND_MOMENT

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
    row_statistics: bool = False


class Run:
    """
    Everything that lives from `on_train_begin` to `on_train_end`.

    Args:
        settings (`Settings`): The callback's arguments.
        args (`TrainingArguments`): The Trainer's.
        state (`TrainerState`): The Trainer's, at the start of training.
        model (`nn.Module`): The model inside all wrappers.
        optimizer (`Any`): The optimizer as accelerate prepared it.
        dataloader (`Any`): The training dataloader as accelerate prepared it.
        processing_class (`Any`): The Trainer's tokenizer or processor, if it has one.
        own_run (`str`, *optional*): A run of this callback that was begun and never ended.
    """

    def __init__(
        self,
        settings: Settings,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        optimizer: Any,
        dataloader: Any,
        processing_class: Any,
        own_run: str | None,
    ):
        support.check_processes(args, optimizer.accelerator_state.distributed_type)
        self._args, self._optimizer = args, optimizer
        self._inner = support.inner_optimizer(optimizer)
        recorded = support.recorded_parameters(model, self._inner, settings.parameters)
        self._tensors = [tensor for _, tensor in recorded]
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        self._main = args.process_index == 0
        self._find_ids(settings, dataloader)
        spe = _steps_per_epoch(dataloader, args, state)
        planned = planned_steps(state.max_steps, spe, settings.window, settings.snapshots_per_epoch)
        rows, columns, fingerprint = describe.describe_dataset(_dataset(dataloader), self._main)
        manifest = describe.new_manifest(
            args,
            model=describe.describe_model(model),
            optimizer=support.describe_optimizer(self._inner),
            parameters=tuple(parameter for parameter, _ in recorded),
            n_rows=rows,
            dataset_columns=columns,
            dataset_fingerprint=fingerprint,
            padding=describe.describe_padding(processing_class),
            id_column=self._id_column,
            total_steps=state.max_steps,
            steps_per_epoch=spe,
            window_start=planned[0],
            snapshot_dtype=settings.snapshot_dtype,
            row_statistics=settings.row_statistics,
            updates_before_start=self._updates() or 0,
        )
        begun = session.agree(manifest, settings.output_dir, state.global_step, own_run, self._main)
        self.manifest = begun.manifest
        self._planned = {step for step in planned if step >= state.global_step}
        self._root = settings.output_dir
        self._warn_if_disk_is_small()
        self._open_files(begun.part)
        self._attach(model, dataloader)
        self._drafts: deque[StepDraft] = deque()
        self._draft: StepDraft | None = None
        self._resume_skip = self._batches_to_skip(state)
        if state.global_step in self._planned and state.global_step not in snapshot_paths(self._root):
            self.take_snapshot(state.global_step)

    # ---- one method for each event ----

    def begin_epoch(self) -> None:
        if self._queue is not None:
            self._queue.begin_epoch(self._resume_skip)
        self._resume_skip = 0

    def begin_step(self) -> None:
        if self._queue is not None:
            self._queue.begin_step()
        scaler = getattr(self._optimizer, "scaler", None)
        # A stream that ends within an accumulation cycle leaves gradients behind, which join the next step.
        carried = self._draft.micro_batches if self._draft is not None else []
        self._draft = StepDraft(scaler.get_scale() if scaler else 1.0, scaler is not None, carried)

    def end_micro_batch(self) -> None:
        positions = self._queue.pop() if self._queue is not None else None
        self._current.micro_batches.append(MicroDraft.of(positions, self._column.pop(), self._loss.pop()))

    def before_update(self) -> None:
        norm = self._norm.pop()
        if norm is None:
            norm = self._unclipped_norm()
        self._current.grad_norm = HostCopy(norm)
        self._current.learning_rates = [float(group["lr"]) for group in self._inner.param_groups]

    def after_update(self) -> None:
        self._current.skipped = bool(self._optimizer.step_was_skipped)

    def end_step(self, state: TrainerState) -> None:
        draft, self._draft = self._current, None
        draft.step, draft.epoch = state.global_step - 1, float(state.epoch or 0.0)
        self._drafts.append(draft)
        # On an accelerator the row is written one step late, when its numbers have long arrived.
        while self._drafts and not (len(self._drafts) == 1 and self._drafts[0].on_its_way):
            self._write_row(self._drafts.popleft())
        if self._snapshots is not None:
            self._snapshots.check()
        if state.global_step in self._planned:
            self.take_snapshot(state.global_step)

    def flush(self) -> None:
        """Everything that has happened so far is on disk when this returns."""
        while self._drafts:
            self._write_row(self._drafts.popleft())
        if self._statistics is not None:
            self._statistics.sync()
        self._ledger.sync()
        if self._snapshots is not None:
            self._snapshots.wait()

    def finish(self, state: TrainerState) -> None:
        """Training ended as it should."""
        self.flush()
        self._update_manifest(complete=True, last_step=state.global_step)

    def stop(self, reason: str) -> None:
        """Recording ends here while training goes on."""
        self.close()
        self._update_manifest(stopped=reason)

    def close(self) -> None:
        """Takes all taps off, and closes the files; what has been written stays."""
        while self._undo:
            self._undo.pop()()

    def has_snapshot(self, step: int) -> bool:
        return self._last_snapshot == step

    def take_snapshot(self, step: int) -> None:
        """Copies parameters and second moment as they are after `step` optimizer steps."""
        self._last_snapshot = step
        if self._snapshots is None:
            return
        vectors: dict[str, list[torch.Tensor]] = {PARAMETERS: self._tensors}
        if self.manifest.optimizer["name"] != "SGD":
            vectors[SECOND_MOMENT] = [self._second_moment(tensor) for tensor in self._tensors]
        self._snapshots.take(step, self._updates(), vectors)

    # ---- parts of the start ----

    def _find_ids(self, settings: Settings, dataloader: Any) -> None:
        self._column = IdColumn(settings.id_column or ID_COLUMN)
        self._queue = SamplerQueue() if support.has_sampler(dataloader) else None
        self._row_ids = column_values(dataloader, self._column.name)
        if self._queue is None:
            support.check_id_column(self._args, "Batches of a stream or of dispatch_batches=True have no sampler here")
        elif settings.id_column is not None and self._row_ids is None:
            support.check_id_column(self._args, f"The column {settings.id_column!r} does not reach the dataloader")
        known = self._row_ids is not None or self._queue is None or settings.id_column is not None
        self._id_column = self._column.name if known else None

    def _open_files(self, part: int) -> None:
        rank = self._args.process_index
        metadata = {"run_id": self.manifest.run_id, "rank": str(rank), "part": str(part)}
        self._ledger = LedgerWriter(part_path(self._root, rank, part), metadata)
        self._snapshots: SnapshotWriter | None = None
        self._statistics: LedgerWriter | None = None
        self._undo: list[Callable[[], Any]] = [self._ledger.close]
        if self.manifest.row_statistics:
            self._statistics = LedgerWriter(part_path(self._root, rank, part, STATISTICS_DIRECTORY), metadata)
            self._undo.append(self._statistics.close)
        self._last_snapshot = -1
        if self._main:
            size, dtype = self.manifest.n_parameters, self.manifest.snapshot_dtype
            self._snapshots = SnapshotWriter(self._root, self.manifest.run_id, size, dtype)
            self._undo.append(self._snapshots.close)

    def _warn_if_disk_is_small(self) -> None:
        if not self._main:
            return
        adam = self.manifest.optimizer["name"] != "SGD"
        each = snapshot_bytes(self.manifest.n_parameters, self.manifest.snapshot_dtype, second_moment=adam)
        warning = disk_warning(each, len(self._planned), shutil.disk_usage(self._root).free)
        if warning is not None:
            logger.warning(warning)

    def _attach(self, model: nn.Module, dataloader: Any) -> None:
        statistics = RowStatistics() if self.manifest.row_statistics else None
        self._loss, self._norm = LossTap(statistics), GradNormTap(self._trainable)
        self._undo.append(self._loss.attach(model).remove)
        self._undo.append(self._column.attach(model).remove)
        self._norm.attach()
        self._undo.append(self._norm.detach)
        if self._queue is not None:
            self._undo.append(self._queue.attach(dataloader))

    def _batches_to_skip(self, state: TrainerState) -> int:
        """Batches of a resumed epoch that the Trainer draws again and throws away."""
        if self._args.ignore_data_skip:
            return 0
        return state.global_step % self.manifest.steps_per_epoch * self._args.gradient_accumulation_steps

    # ---- parts of a step ----

    @property
    def _current(self) -> StepDraft:
        if self._draft is None:
            raise RecordingError("The Trainer ended a step that it never began; this Trainer's loop is not supported.")
        return self._draft

    def _unclipped_norm(self) -> torch.Tensor:
        if self.manifest.max_grad_norm > 0 or self._current.scaled:
            raise RecordingError(
                "The gradient's norm before clipping is unknown, because this Trainer clips without "
                "accelerator.clip_grad_norm_; call that one, or pass max_grad_norm=0."
            )
        return torch.nn.utils.get_total_norm([p.grad for p in self._trainable if p.grad is not None])

    def _write_row(self, draft: StepDraft) -> None:
        row = draft.row(self.manifest.world_size, self._row_ids)
        if self._statistics is not None:
            # First, so that every step in the ledger has its statistics.
            self._statistics.write(draft.statistics(row))
        self._ledger.write(row)
        loss = "custom" if self.manifest.loss == "custom" or None in row.scales else "model"
        if loss != self.manifest.loss:
            self._update_manifest(loss=loss)

    def _update_manifest(self, **changes: Any) -> None:
        self.manifest = replace(self.manifest, **changes)
        if self._main:
            write_manifest(self._root, self.manifest)

    def _second_moment(self, tensor: torch.Tensor) -> torch.Tensor:
        state = self._inner.state.get(tensor, {})
        # With amsgrad the update divides by the largest moment so far.
        moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        return torch.zeros_like(tensor) if moment is None else moment

    def _updates(self) -> int | None:
        """The optimizer's own count of its updates; `None` if it keeps none."""
        steps = [
            self._inner.state[tensor]["step"]
            for tensor in self._tensors
            if "step" in self._inner.state.get(tensor, {})
        ]
        return max((int(step) for step in steps), default=None)


def _dataset(dataloader: Any) -> Any:
    return compat.base_dataloader(dataloader).dataset


def _steps_per_epoch(dataloader: Any, args: TrainingArguments, state: TrainerState) -> int:
    """As the Trainer counts them; a stream of unknown length is one long epoch."""
    try:
        batches = len(dataloader)
    except TypeError:
        return max(1, state.max_steps)
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))
