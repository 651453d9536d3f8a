"""One training run under recording, on one process: what each of the Trainer's events does."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from hf_prune._core.processes import Processes
from hf_prune.errors import RecordingError
from hf_prune.model.pairs import NO_STATISTICS
from hf_prune.record import describe
from hf_prune.record.gathering import gather_parts
from hf_prune.record.hooks import Hooks
from hf_prune.record.optimizer import RecordedOptimizer
from hf_prune.record.pending import HostCopy, PendingMicroBatch, PendingStep
from hf_prune.record.row_ids import RowIds
from hf_prune.record.schedule import Snapshots
from hf_prune.record.session import write_manifest
from hf_prune.record.writers import Writers
from hf_prune.trajectory.ledger import LedgerRow
from hf_prune.trajectory.manifest import Manifest
from hf_prune.trajectory.window import in_window

logger = logging.getLogger(__name__)


class Recording:
    """
    Everything that lives from `on_train_begin` to `on_train_end`. [`start_recording`] makes it.

    Args:
        root (`Path`): The trajectory's directory.
        manifest (`Manifest`): The run's, as it is on disk.
        snapshots (`Snapshots`): Which snapshots are due and which there are.
        optimizer (`RecordedOptimizer`): The optimizer.
        rows (`RowIds`): Which rows a micro-batch holds.
        hooks (`Hooks`): What is measured at the model's loss and at clipping.
        writers (`Writers`): The open files.
        processes (`Processes`): Those of the run.
        apart (`Sequence[int]`): Of each disk that the main process does not see, the first process that does.
        dataset (`Any`): The training rows.
        skip (`int`): Batches of the first epoch that the Trainer draws again after a resume.
        undo (`ExitStack`): Takes all hooks off and closes the files.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        *,
        snapshots: Snapshots,
        optimizer: RecordedOptimizer,
        rows: RowIds,
        hooks: Hooks,
        writers: Writers,
        processes: Processes,
        apart: Sequence[int],
        dataset: Any,
        skip: int,
        undo: ExitStack,
    ):
        self.manifest = manifest
        self._root, self._main, self._snapshots = root, processes.rank == 0, snapshots
        self._processes, self._apart = processes, apart
        self._optimizer, self._rows, self._hooks, self._writers = optimizer, rows, hooks, writers
        self._skip, self._undo, self._dataset = skip, undo, dataset
        self._finished: deque[PendingStep] = deque()  # steps that are not written yet
        self._begun: PendingStep | None = None
        self._diverged = False

    def begin_epoch(self) -> None:
        self._rows.begin_epoch(self._skip)
        self._skip = 0

    def begin_step(self) -> None:
        self._rows.begin_step()
        scale = self._optimizer.loss_scale()
        # A stream that ends within an accumulation cycle leaves gradients behind, which join the next step.
        carried = self._begun.micro_batches if self._begun is not None else []
        self._begun = PendingStep(1.0 if scale is None else HostCopy(scale), scale is not None, carried)

    def end_micro_batch(self) -> None:
        positions, column = self._rows.pop()
        self._current.micro_batches.append(PendingMicroBatch.of(positions, column, self._hooks.loss.pop()))
        if self.manifest.inputs is None and self._hooks.loss.inputs:
            self._describe_inputs(positions)

    def before_update(self) -> None:
        self._current.grad_norm = HostCopy(self.gradient_norm())
        self._current.learning_rates = self._optimizer.learning_rates

    def gradient_norm(self) -> torch.Tensor:
        """The norm of the gradients before clipping; all processes take it together."""
        norm = self._hooks.norm.pop()
        return self._unclipped_norm() if norm is None else self._optimizer.view.norm(norm)

    def after_update(self) -> None:
        self._current.skipped = self._optimizer.step_was_skipped

    def end_step(self, state: TrainerState) -> None:
        step, self._begun = self._current, None
        step.step, step.epoch = state.global_step - 1, float(state.epoch or 0.0)
        self._finished.append(step)
        # On an accelerator the row is written one step late, when its numbers have long arrived.
        while self._finished and not (len(self._finished) == 1 and self._finished[0].on_its_way):
            self._write(self._finished.popleft())
        if state.global_step in self._snapshots.due:
            self._writers.wait()
        else:
            self._writers.check()

    def flush(self) -> None:
        """Everything that has happened so far is on disk when this returns."""
        while self._finished:
            self._write(self._finished.popleft())
        self._writers.flush()

    def gather(self) -> None:
        """Brings what other disks hold to the main process's, once all is on disk; all processes do so together."""
        self._writers.remove_superseded()
        gather_parts(self._root, self._apart, self._processes)

    def finish(self, state: TrainerState) -> None:
        """Training ended as it should."""
        self.flush()
        window = in_window(self._snapshots.steps, self._snapshots.share)
        start = window[0] if window else self.manifest.window_start
        self._update_manifest(complete=True, last_step=state.global_step, window_start=start)

    def stop(self, reason: str) -> None:
        """Recording ends here while training continues."""
        self.close()
        self._update_manifest(stopped=reason)

    def close(self) -> None:
        """Takes all hooks off, and closes the files; what has been written stays."""
        self._undo.close()

    def is_due(self, step: int) -> bool:
        """Whether a snapshot is taken after this step, by all processes."""
        return step in self._snapshots.due

    def take_due_snapshot(self, step: int) -> None:
        """Takes the snapshot of the step that ended, if one is due."""
        if step in self._snapshots.due:
            self.take_snapshot(step)

    def take_snapshot(self, step: int) -> None:
        """
        Copies parameters and second moment as they are after `step` optimizer steps, unless that was done. All
        processes do so at the same steps.
        """
        if step not in self._snapshots.steps:
            self._writers.take_snapshot(step, self._optimizer, self._snapshots.add(step))

    def keep_best(self, step: int) -> None:
        """The checkpoint of the present step is the best so far: the window that ends here is kept too."""
        self._snapshots.best = step
        self.take_snapshot(step)

    @property
    def _current(self) -> PendingStep:
        if self._begun is None:
            raise RecordingError("The Trainer ended a step that it never began; this Trainer's loop is not supported.")
        return self._begun

    def _unclipped_norm(self) -> torch.Tensor:
        if self.manifest.max_grad_norm > 0 or self._optimizer.scaler is not None:
            raise RecordingError(
                "The gradient's norm before clipping is unknown, because this Trainer clips without "
                "accelerator.clip_grad_norm_; call that one, or pass max_grad_norm=0."
            )
        return self._optimizer.gradient_norm()

    def _describe_inputs(self, positions: list[int] | None) -> None:
        """Notes what the model was given in the first step; it is written when that step ends, with its loss."""
        hook = self._hooks.loss
        labels = next(iter(hook.labels.values()), None)
        column = describe.find_label_column(self._dataset, positions, labels)
        self.manifest = replace(self.manifest, inputs=hook.inputs, label_column=column)
        hook.labels = {}

    def _write(self, step: PendingStep) -> None:
        row = step.row(self.manifest.world_size, self._rows.by_position)
        statistics = step.statistics(row) if self.manifest.row_statistics else None
        if self.manifest.row_statistics and statistics is None:
            self._give_up_statistics()
        self._writers.write(row, statistics)
        self._warn_of_divergence(row)
        loss = "custom" if self.manifest.loss == "custom" or None in row.scales else "model"
        if loss != self.manifest.loss:
            self._update_manifest(loss=loss)
            known = self.manifest.label_smoothing or self.manifest.pairs is not None
            if loss == "custom" and self._main and not known:
                logger.warning(
                    "This run trains on another loss than the one that its model returns, or on more than that: "
                    "recording goes on, and add_influence will need loss=, a function (logits, labels, inputs) or "
                    "(model, batch) -> losses of shape (batch,)."
                )

    def _warn_of_divergence(self, row: LedgerRow) -> None:
        if self._diverged or row.skipped or math.isfinite(row.grad_norm):
            return
        self._diverged = True
        if self._main:
            logger.warning(
                f"The gradient of step {row.step} is {row.grad_norm}: training diverges. Recording goes on, and only "
                "a window that ends before can be scored; train with a lower learning rate, more warm-up or clipping."
            )

    def _give_up_statistics(self) -> None:
        found = self._hooks.loss.statistics
        reason = (found.failure if found is not None else None) or "The model was not given each batch once and whole."
        reason = reason if self.manifest.pairs is None else NO_STATISTICS
        self._hooks.loss.statistics = None
        self._update_manifest(row_statistics=False, no_statistics=reason)
        if self._main:
            logger.warning("Training and recording go on without the statistics of rows. %s", reason)

    def _update_manifest(self, **changes: Any) -> None:
        self.manifest = replace(self.manifest, **changes)
        if self._main:
            write_manifest(self._root, self.manifest)
