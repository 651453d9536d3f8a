"""The callback that records a training run."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_prune._core import trackers
from hf_prune._core.processes import Processes
from hf_prune.errors import RecordingError
from hf_prune.record.recording import Recording
from hf_prune.record.start import Settings, Training, start_recording
from hf_prune.trajectory.files import snapshot_paths
from hf_prune.trajectory.snapshots import DTYPES

logger = logging.getLogger(__name__)


class TrajectoryCallback(TrainerCallback):
    """
    Records a training run: which examples were in which step with what weight, and the parameters on the way.

    It is a plain [`~transformers.TrainerCallback`] and changes nothing about training. What cannot be recorded
    correctly raises [`RecordingError`] when training begins, and the message says what to do.

    Args:
        output_dir (`str` or `os.PathLike`):
            Where the record goes. It must hold no other run's record; a resumed run continues its own. Processes on
            machines without a common disk keep their ledgers in the directory of this name on their own, and the main
            process collects them when training ends; `hf-prune gather` does so where it was killed.
        window (`float`, *optional*, defaults to 0.5):
            The share of the steps made, counted from the last, that snapshots cover, in (0, 1]: a run that ends before
            its plan has a window too, to the nearest snapshot. The ledger covers the whole run.
        snapshots_per_epoch (`float`, *optional*, defaults to 1):
            Snapshots taken in an epoch. Those that the window has left behind are removed again, and between the
            others parameters are interpolated. With a `metric_for_best_model` the window that ends with the best
            checkpoint is kept too, so that the best model can be scored.
        parameters (`str`, *optional*):
            A regular expression; only trainable parameters whose name it is found in are kept. All of them by default.
        id_column (`str`, *optional*):
            A column of integer ids to know rows by, instead of their positions in the training dataset. It must reach
            the dataloader (`remove_unused_columns=False`), and is taken out of the batch before the model sees it.
        snapshot_dtype (`str`, *optional*, defaults to `"float32"`):
            `"float32"`, or `"bfloat16"` for half the disk space.
        on_error (`str`, *optional*, defaults to `"raise"`):
            What to do when the record cannot be written any more (the disk is full, say): `"raise"` ends training with
            a [`RecordingError`], `"stop-recording"` keeps what there is, marks the record as stopped, and trains on.
        row_statistics (`bool`, *optional*, defaults to `False`):
            Whether to keep the loss and the label's probability and margin of each row at each visit, in 27 bytes a
            visit. [`add_scores`] computes `el2n`, `forgetting`, `aum` and others from them.

    Example:

    ```python
    trainer = Trainer(model, args, train_dataset=train, callbacks=[TrajectoryCallback("run/trajectory")])
    trainer.train()
    ```
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        window: float = 0.5,
        snapshots_per_epoch: float = 1,
        parameters: str | None = None,
        id_column: str | None = None,
        snapshot_dtype: str = "float32",
        *,
        on_error: str = "raise",
        row_statistics: bool = False,
    ):
        if not 0.0 < window <= 1.0:
            raise ValueError(f"window must lie in (0, 1], got {window}.")
        if not snapshots_per_epoch > 0:
            raise ValueError(f"snapshots_per_epoch must be greater than 0, got {snapshots_per_epoch}.")
        if snapshot_dtype not in DTYPES:
            raise ValueError(f"snapshot_dtype must be one of {sorted(DTYPES)}, got {snapshot_dtype!r}.")
        if on_error not in ("raise", "stop-recording"):
            raise ValueError(f"on_error must be 'raise' or 'stop-recording', got {on_error!r}.")
        if parameters is not None:
            _check_pattern(parameters)
        self._settings = Settings(
            Path(output_dir), window, snapshots_per_epoch, parameters, id_column, snapshot_dtype, row_statistics
        )
        self._on_error = on_error
        self._recording: Recording | None = None
        self._processes = Processes(0, 1)
        self._failure: RecordingError | None = None
        self._unfinished: str | None = None
        self._seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close()  # of a run that raised
        self._seconds = 0.0
        self._failure = None
        training = Training(
            args,
            state,
            model=kwargs["model"],
            optimizer=kwargs["optimizer"],
            dataloader=kwargs["train_dataloader"],
            processing_class=kwargs.get("processing_class"),
        )
        self._recording = start_recording(self._settings, training, self._unfinished)
        self._unfinished = self._recording.manifest.run_id
        self._processes = Processes.current()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._do(lambda recording: recording.begin_epoch())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._do(lambda recording: recording.begin_step())

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._do(lambda recording: recording.end_micro_batch())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        failed = self._failure is not None
        self._do(lambda recording: recording.before_update())
        if failed and self._recording is not None:
            with suppress(RecordingError):
                self._recording.gradient_norm()  # the others take it, and it takes all where parameters are sharded

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._do(lambda recording: recording.after_update())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._do(lambda recording: recording.end_micro_batch())
        self._do(lambda recording: recording.end_step(state))
        if self._recording is not None and (control.should_save or self._recording.is_due(state.global_step)):
            self._end_together()
        self._do(lambda recording: recording.take_due_snapshot(state.global_step))
        if control.should_save:
            # A checkpoint must never be ahead of the record, or the run could not be continued from it.
            self._do(lambda recording: recording.flush())

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # With load_best_model_at_end the parameters are others by the time of on_train_end.
        last = control.should_training_stop or args.load_best_model_at_end
        if last or control.should_save:
            self._do(lambda recording: recording.flush())
            self._end_together()
        if last:
            self._do(lambda recording: recording.take_snapshot(state.global_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._do(lambda recording: recording.flush())
        if state.best_global_step == state.global_step:
            self._end_together()
            self._do(lambda recording: recording.keep_best(state.global_step))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The Trainer's last log: the trackers are closed before this callback receives on_train_end.
        if (
            self._recording is not None
            and state.is_world_process_zero
            and "train_runtime" in (kwargs.get("logs") or {})
        ):
            self._do(lambda recording: recording.flush())
            figures = _figures(self._settings.output_dir, state.global_step, self._seconds)
            trackers.log_recording(figures, args, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._do(lambda recording: recording.flush())
        self._end_together()
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._do(lambda recording: recording.take_snapshot(state.global_step))
        self._do(lambda recording: recording.flush())
        self._end_together()
        self._do(lambda recording: recording.gather())
        self._end_together()
        self._do(lambda recording: recording.finish(state))
        self._end_together()
        if self._recording is not None:
            self._unfinished = None
        self._do(lambda recording: recording.close())
        self._recording = None
        self._processes.barrier()  # the record is whole, in all processes, when `train` returns

    def _do(self, event: Callable[[Recording], None]) -> None:
        """Runs an event of the recording, if there is one and it has not failed, and notes its failure."""
        if self._recording is None or self._failure is not None:
            return
        start = time.perf_counter()
        try:
            event(self._recording)
            self._seconds += time.perf_counter() - start
        except (OSError, RecordingError) as error:
            message = str(error)
            if isinstance(error, OSError):
                message = f"The trajectory cannot be written ({error}): free disk space, or record fewer snapshots."
            self._failure = RecordingError(message)
            self._failure.__cause__ = error
            if self._processes.world == 1:
                self._end_together()

    def _end_together(self) -> None:
        """
        Handles a failure as `on_error` says, in all processes at once; until then the one that failed trains on
        without recording. Every snapshot and every checkpoint comes after this, and this after the last snapshot was
        written: one takes all processes, which wait for each other no longer than the launch allows.
        """
        if self._recording is None:
            return
        own = self._failure
        failure = self._processes.first_failure(None if own is None else str(own))
        if failure is None:
            return
        self._failure = None
        if self._on_error == "raise":
            self._close()
            raise own or RecordingError(failure)
        self._stop(failure)

    def _stop(self, reason: str) -> None:
        recording, self._recording = self._recording, None
        logger.warning("Recording stops and training continues. %s", reason)
        if recording is not None:
            try:
                recording.stop(reason)
            except OSError as error:
                logger.warning("The record could not be marked as stopped (%s).", error)

    def _close(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            try:
                recording.close()
            except OSError as error:
                logger.warning("A file of the record could not be closed (%s).", error)


def _figures(directory: Path, steps: int, seconds: float) -> dict[str, float]:
    """
    What a record amounts to.

    Args:
        directory (`Path`): The record.
        steps (`int`): Optimizer steps recorded.
        seconds (`float`): Seconds spent in the recorder's callback events.

    Returns:
        `dict[str, float]`: `recorded_steps`, `snapshots`, `record_mb` (MiB on disk) and `recorder_seconds`.
    """
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return {
        "recorded_steps": steps,
        "snapshots": len(snapshot_paths(directory)),
        "record_mb": size / 2**20,
        "recorder_seconds": seconds,
    }


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"parameters={pattern!r} is not a regular expression: {error}.") from error
