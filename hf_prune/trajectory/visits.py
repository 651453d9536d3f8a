"""Statistics of every visit on disk: one JSON line for each optimizer step and process, next to the ledger's."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_prune._core.reading import Count
from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.files import LEDGER, STATISTICS_DIRECTORY, part_paths
from hf_prune.trajectory.ledger import LedgerRow, read_lines
from hf_prune.trajectory.trajectory import Trajectory

STATISTICS = ("loss", "confidence", "margin", "error_norm", "correct")  # of one visit, in this order
_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class StatisticsRow:
    """
    The visits of one process in one optimizer step.

    Args:
        step (`int`): 0-based optimizer step.
        values (`str`): float32 of shape `(5, V)`, little-endian, in base64; visits in the order of the ledger's ids.
    """

    step: Count
    values: str

    @classmethod
    def of(cls, step: int, batches: list[np.ndarray]) -> StatisticsRow:
        """From the statistics `(5, B)` of each micro-batch."""
        values = np.concatenate(batches, axis=1).astype(_DTYPE)
        return cls(step, base64.b64encode(values.tobytes()).decode("ascii"))


@dataclass(frozen=True)
class Visits:
    """
    Every visit of a row in training, in the order in which they happened, as seen in training mode (with dropout, if
    the model has any) at the parameters before the step.

    Args:
        ids (`np.ndarray`): `(V,)`, int64; the row, as the ledger names it.
        steps (`np.ndarray`): `(V,)`, int64; the optimizer step.
        loss (`np.ndarray`): `(V,)`, float32, like the following; cross-entropy, or squared error.
        confidence (`np.ndarray`): Probability of the label.
        margin (`np.ndarray`): The label's logit minus the largest other one.
        error_norm (`np.ndarray`): Length of the probabilities minus the one-hot label.
        correct (`np.ndarray`): 1 where the label's logit is the largest, else 0.

    A row of tokens has the mean over its labelled tokens. NaN stands for what the model's output does not tell.
    """

    ids: np.ndarray
    steps: np.ndarray
    loss: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    error_norm: np.ndarray
    correct: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def read_visits(trajectory: Trajectory) -> Visits:
    """
    Reads the statistics of all recorded visits.

    Args:
        trajectory ([`Trajectory`]): A run that was recorded with `row_statistics=True`.

    Raises:
        [`TrajectoryError`]: if it was recorded without, or the files do not fit the ledger.
    """
    manifest = trajectory.manifest
    if manifest.no_statistics is not None:
        raise TrajectoryError(f"The run has no statistics of its rows. {manifest.no_statistics}")
    if not manifest.row_statistics:
        raise TrajectoryError(
            "The run was recorded without statistics of its rows: train with TrajectoryCallback(..., "
            "row_statistics=True)."
        )
    by_rank = [_steps_of(trajectory.path, rank, manifest.run_id) for rank in range(manifest.world_size)]
    values, ids, steps = [np.empty((len(STATISTICS), 0), _DTYPE)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for step in trajectory.steps():
        counts = np.bincount(
            [batch.rank for batch in step.micro_batches],
            weights=[len(batch.ids) for batch in step.micro_batches],
            minlength=manifest.world_size,
        )
        for rank, count in enumerate(counts.astype(int)):
            values.append(_values(by_rank[rank].get(step.index), count, step.index, rank))
        ids.append(step.ids)
        steps.append(np.full(len(step.ids), step.index))
    return Visits(np.concatenate(ids), np.concatenate(steps), *np.concatenate(values, axis=1))


def _steps_of(root: Path, rank: int, run_id: str) -> dict[int, str]:
    """
    The lines of one process by step, from the very part that the ledger's row of the step is in.

    A step's statistics are written just before its row, so a part that was killed may hold one step more.
    """
    ledger, statistics = part_paths(root), part_paths(root, STATISTICS_DIRECTORY)
    found: dict[int, str] = {}
    for part in sorted(part for r, part in ledger if r == rank):
        rows = [row.step for row in read_lines(ledger[rank, part], run_id, LedgerRow)]
        if not rows:
            continue
        found = {step: values for step, values in found.items() if step < rows[0]}
        path = statistics.get((rank, part))
        lines = [] if path is None else read_lines(path, run_id, StatisticsRow)
        known = {line.step: line.values for line in lines}
        found |= {step: known[step] for step in rows if step in known}
    return found


def _values(text: str | None, count: int, step: int, rank: int) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(text or "", validate=True), _DTYPE).reshape(len(STATISTICS), count)
    except ValueError as error:
        raise TrajectoryError(
            f"The statistics of step {step} and rank {rank} are missing or damaged: copy the whole directory "
            f"{STATISTICS_DIRECTORY}, next to {LEDGER}, again, or record the run again."
        ) from error
