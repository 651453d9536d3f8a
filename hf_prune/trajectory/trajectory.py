"""Reading a recorded run: its steps, and its parameters at any step of the window."""

from __future__ import annotations

import bisect
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from hf_prune._core.notebook import trajectory_html
from hf_prune.errors import TrajectoryError, UnsupportedError
from hf_prune.trajectory.ledger import LedgerRow, read_rows
from hf_prune.trajectory.manifest import RECORD, Manifest, read_manifest
from hf_prune.trajectory.parts import saved_snapshots
from hf_prune.trajectory.snapshots import SavedSnapshot, Snapshot
from hf_prune.trajectory.window import in_window


@dataclass(frozen=True)
class MicroBatch:
    """
    One forward and backward pass of one process.

    Args:
        rank (`int`):
            The process.
        ids (`tuple[int, ...]`):
            Ids of the examples, in the order of the batch; an example that was drawn twice is there twice.
        scale (`float`, *optional*):
            d(training objective of the step, averaged over ranks) / d(the scalar loss that this forward returned), as
            measured. `None` if the Trainer trained on something else than the loss that the model returned.
        num_items (`float`, *optional*):
            `num_items_in_batch` as it was passed to the model; `None` if it was not passed.
        loss (`float`, *optional*):
            The micro-batch's part of the step's objective: what the Trainer took the gradient of, averaged over ranks.
            `None` where the Trainer did not take it through accelerate.
    """

    rank: int
    ids: tuple[int, ...]
    scale: float | None
    num_items: float | None
    loss: float | None = None


@dataclass(frozen=True)
class Step:
    """
    One optimizer step.

    Args:
        index (`int`):
            0-based optimizer step, equal to the Trainer's `global_step` before it.
        epoch (`float`):
            Epochs of the data that were done after the step.
        micro_batches (`tuple[MicroBatch, ...]`):
            Those of all ranks, rank by rank, in the order in which they were processed.
        learning_rates (`tuple[float, ...]`):
            One for each parameter group, as used in the step.
        grad_norm (`float`):
            Norm of the gradient over all trainable parameters, before clipping.
        skipped (`bool`):
            Whether the update was skipped because of an overflow (fp16).
    """

    index: int
    epoch: float
    micro_batches: tuple[MicroBatch, ...]
    learning_rates: tuple[float, ...]
    grad_norm: float
    skipped: bool

    @property
    def ids(self) -> np.ndarray:
        """Ids of all visits of the step in order, int64, duplicates kept."""
        return np.array([i for batch in self.micro_batches for i in batch.ids], dtype=np.int64)


class Trajectory:
    """
    A recorded training run. Make one with [`Trajectory.open`].

    It is safe to read while the run continues, and after a run was killed: it then ends at the last finished step.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        rows: list[list[LedgerRow]],
        snapshots: dict[int, SavedSnapshot],
        first: int | None = None,
    ):
        self._path = path
        self._rows = rows
        self.is_part = first is not None
        self._files = {step: file for step, file in snapshots.items() if step <= len(rows)}
        if first is None:
            first = min(in_window(list(self._files), 1.0 if manifest.window is None else manifest.window), default=0)
        self._snapshots = {step: file for step, file in self._files.items() if step >= first}
        self._headers = {step: file.header() for step, file in self._files.items()}
        self._loaded: dict[int, Snapshot] = {}
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Trajectory:
        """
        Opens a record and checks all that is cheap to check.

        Args:
            path (`str` or `os.PathLike`):
                The `output_dir` that was given to [`TrajectoryCallback`].

        Returns:
            [`Trajectory`]

        Raises:
            [`TrajectoryError`]: if there is no record, or it is damaged, mixed from two runs, or too new.
        """
        root = Path(path)
        manifest = read_manifest(root)
        rows = read_rows(root, manifest.run_id, manifest.world_size)
        if manifest.complete and len(rows) != manifest.last_step:
            raise TrajectoryError(
                f"The ledger ends after step {len(rows)}, but the run made {manifest.last_step} steps: a ledger file "
                "is missing or damaged; copy the whole directory again."
            )
        _check_rows(rows, manifest)
        return cls(root, manifest, rows, saved_snapshots(root, manifest))

    def __len__(self) -> int:
        """Number of optimizer steps recorded."""
        return len(self._rows)

    def _repr_html_(self) -> str:
        return trajectory_html(self)

    @property
    def path(self) -> Path:
        """The directory of the record."""
        return self._path

    @property
    def n_rows(self) -> int:
        """Rows of the training dataset; for a stream of unknown length, distinct rows seen."""
        if self.manifest.n_rows is not None:
            return self.manifest.n_rows
        return len({i for ranks in self._rows for row in ranks for batch in row.ids for i in batch})

    @property
    def dataset_columns(self) -> dict[str, str]:
        """Column digests of the training dataset as the Trainer read it; empty if it was no `datasets.Dataset`."""
        return self.manifest.dataset_columns

    @property
    def id_column(self) -> str | None:
        """The column that ids are values of, or `None` if they are positions in the training dataset."""
        return self.manifest.id_column

    @property
    def snapshot_steps(self) -> list[int]:
        """Steps of the window at which there is a snapshot, in order."""
        return list(self._snapshots)

    @property
    def window(self) -> tuple[int, int]:
        """(first, last): steps `first <= t < last` lie between two snapshots and can be swept."""
        steps = self.snapshot_steps
        if len(steps) < 2:
            raise TrajectoryError(
                f"The record has {len(steps)} snapshots after {len(self)} of {self.manifest.total_steps} steps, and "
                "needs two: let the run go on, or record it again with more snapshots_per_epoch."
            )
        return steps[0], steps[-1]

    def until(self, step: int) -> Trajectory:
        """
        The record of the same run as it was after `step` optimizer steps, with a window of its own.

        Args:
            step (`int`): One of `ends`; the step of the best checkpoint is among them.

        Raises:
            `ValueError`: if there is no snapshot of that step, or none before it.
        """
        if step not in self.ends:
            raise ValueError(
                f"until={step} is not a step that a window of this record can end at: these are "
                f"{', '.join(map(str, self.ends))}."
            )
        return Trajectory(self._path, self.manifest, self._rows[:step], self._files)

    @property
    def ends(self) -> list[int]:
        """Steps that `until` takes: those of the snapshots on disk but the first."""
        return list(self._files)[1:]

    def part(self, last: int) -> Trajectory:
        """The same window, ended at the snapshot of the step `last`: no model of the user's belongs to its end."""
        return Trajectory(self._path, self.manifest, self._rows[:last], self._files, first=self.window[0])

    def step(self, t: int) -> Step:
        """The optimizer step `t`, counted from 0."""
        if not 0 <= t < len(self):
            raise IndexError(f"Step {t} was not recorded; the record holds steps 0 to {len(self) - 1}.")
        return _step(self._rows[t])

    def steps(self) -> list[Step]:
        """All recorded steps, those before the window too."""
        return [_step(ranks) for ranks in self._rows]

    def parameters_at(self, t: int) -> torch.Tensor:
        """
        The parameters before optimizer step `t`, interpolated linearly between snapshots.

        Args:
            t (`int`): A step of the window, its end included.

        Returns:
            `torch.Tensor`: shape (p,), float32, in the order of `manifest.parameters`.
        """
        return self._interpolate(t, lambda snapshot: snapshot.parameters)

    def snapshot_at(self, step: int) -> torch.Tensor:
        """The parameters `(p,)` of a snapshot on disk, be it of the window or not."""
        return self._files[step].read().parameters

    def samples_at(self, step: int) -> torch.Tensor:
        """
        Entries of the model's other parameters, which are not recorded, at a snapshot, as
        [`~hf_prune.trajectory.snapshots.samples_of`] takes them; empty where all are recorded.
        """
        return torch.tensor(self._headers[step].samples)

    def second_moment_at(self, t: int) -> torch.Tensor:
        """
        The optimizer's second moment (`exp_avg_sq`) after `t` optimizer steps, interpolated linearly.

        Args:
            t (`int`): A step of the window, its end included.

        Returns:
            `torch.Tensor`: shape (p,), float32.

        Raises:
            [`UnsupportedError`]: if the optimizer has no second moment.
        """
        return self._interpolate(t, self._second_moment)

    def updates_before(self, t: int) -> int:
        """
        Updates that the optimizer had really made before step `t`: skipped steps do not count, those of a state that
        the run started with do. Adam's bias correction in step `t` uses this number plus one.
        """
        if not 0 <= t <= len(self):
            raise IndexError(f"Step {t} was not recorded; the record holds steps 0 to {len(self) - 1}.")
        return self.manifest.updates_before_start + int(self._updates[t])

    @cached_property
    def digest(self) -> str:
        """SHA-256 that identifies the run: over manifest, ledger content and the snapshots' digests."""
        hasher = hashlib.sha256(json.dumps(self.manifest.to_dict(), sort_keys=True).encode())
        for ranks in self._rows:
            hasher.update(json.dumps([asdict(row) for row in ranks], sort_keys=True).encode())
        snapshots = [(step, self._headers[step].sha256) for step in self._snapshots]
        hasher.update(json.dumps(snapshots).encode())
        return hasher.hexdigest()

    @cached_property
    def _updates(self) -> np.ndarray:
        made = [not ranks[0].skipped for ranks in self._rows]
        return np.concatenate([[0], np.cumsum(made, dtype=np.int64)])

    def _second_moment(self, snapshot: Snapshot) -> torch.Tensor:
        if snapshot.second_moment is None:
            raise UnsupportedError(
                f"{self.manifest.optimizer['name']} keeps no second moment; only Adam and AdamW do."
            )
        return snapshot.second_moment

    def _interpolate(self, t: int, vector: Callable[[Snapshot], torch.Tensor]) -> torch.Tensor:
        if t in self._snapshots:
            snapshot = self._loaded.get(t) or self._load_only(t)[0]
            return vector(snapshot).clone()
        first, last = self.window
        if not first <= t <= last:
            raise IndexError(f"Step {t} lies outside the recorded window, {first} to {last}.")
        steps = self.snapshot_steps
        right = bisect.bisect_left(steps, t)
        before, after = self._load_only(steps[right - 1], steps[right])
        share = (t - before.step) / (after.step - before.step)
        return torch.lerp(vector(before), vector(after), share)

    def _load_only(self, *steps: int) -> list[Snapshot]:
        """Snapshots of these steps; no others stay in memory, since a sweep needs the two around its step."""
        kept = {step: snapshot for step, snapshot in self._loaded.items() if step in steps}
        self._loaded = kept
        for step in steps:
            if step not in kept:
                kept[step] = self._snapshots[step].read()
        return [kept[step] for step in steps]


def _step(ranks: list[LedgerRow]) -> Step:
    micro_batches = tuple(
        MicroBatch(rank, tuple(ids), scale, num_items, loss)
        for rank, row in enumerate(ranks)
        for ids, scale, num_items, loss in zip(row.ids, row.scales, row.num_items, row.losses, strict=True)
    )
    first = ranks[0]
    return Step(
        index=first.step,
        epoch=first.epoch,
        micro_batches=micro_batches,
        learning_rates=tuple(first.learning_rates),
        grad_norm=first.grad_norm,
        skipped=first.skipped,
    )


def _check_rows(rows: list[list[LedgerRow]], manifest: Manifest) -> None:
    groups = len(manifest.optimizer["groups"])
    wrong = next((row for ranks in rows for row in ranks if len(row.learning_rates) != groups), None)
    if wrong is not None:
        raise TrajectoryError(
            f"Step {wrong.step} of the ledger has {len(wrong.learning_rates)} learning rates, and the optimizer has "
            f"{groups} groups of parameters: {RECORD.mend}."
        )
    if manifest.n_rows is None or manifest.id_column is not None:
        return
    for ranks in rows:
        for row in ranks:
            if any(not 0 <= i < manifest.n_rows for batch in row.ids for i in batch):
                raise TrajectoryError(
                    f"Step {row.step} of the ledger names a row that is not among the dataset's {manifest.n_rows} "
                    "rows: the ledger is damaged; record the run again."
                )
