"""A recorded run in a few numbers, for people and for machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hf_prune.trajectory.files import MANIFEST, STATISTICS_DIRECTORY, part_paths, snapshot_paths
from hf_prune.trajectory.trajectory import Trajectory


def summarize(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Sums up a record.

    Args:
        path (`str` or `os.PathLike`):
            The trajectory's directory.

    Returns:
        `dict[str, Any]`: plain JSON values. `window` is `None` while the record has fewer than two snapshots;
        `ends` are the steps that `until=` takes;
        `visits_per_row` maps a number of visits to how many rows had it; `weights` lists the factors on the model's
        loss that were seen, and how often `num_items_in_batch` was passed.

    Raises:
        [`TrajectoryError`]: if the record is missing or damaged.
    """
    root = Path(path)
    trajectory = Trajectory.open(root)
    manifest = trajectory.manifest
    return {
        "run_id": manifest.run_id,
        "digest": trajectory.digest,
        "complete": manifest.complete,
        "stopped": manifest.stopped,
        "steps": {
            "recorded": len(trajectory),
            "planned": manifest.total_steps,
            "per_epoch": manifest.steps_per_epoch,
            "skipped": sum(step.skipped for step in trajectory.steps()),
        },
        "window": list(trajectory.window) if len(trajectory.snapshot_steps) > 1 else None,
        "snapshots": trajectory.snapshot_steps,
        "ends": trajectory.ends,
        "rows": trajectory.n_rows,
        "id_column": trajectory.id_column,
        "visits_per_row": _visits(trajectory),
        "weights": _weights(trajectory),
        "model": manifest.model,
        "optimizer": manifest.optimizer["name"],
        "parameters": manifest.n_parameters,
        "world_size": manifest.world_size,
        "gradient_accumulation_steps": manifest.gradient_accumulation_steps,
        "max_grad_norm": manifest.max_grad_norm,
        "clipped_steps": _clipped(trajectory),
        "precision": manifest.precision,
        "bytes": _bytes(root),
        "versions": manifest.versions,
    }


def _visits(trajectory: Trajectory) -> dict[str, int]:
    steps = trajectory.steps()
    ids = np.concatenate([step.ids for step in steps]) if steps else np.empty(0, dtype=np.int64)
    _, visits = np.unique(ids, return_counts=True)
    counts = dict(zip(*(values.tolist() for values in np.unique(visits, return_counts=True)), strict=True))
    unseen = trajectory.n_rows - len(visits)
    return {str(times): rows for times, rows in sorted({0: unseen, **counts}.items()) if rows}


def _weights(trajectory: Trajectory) -> dict[str, Any]:
    batches = [batch for step in trajectory.steps() for batch in step.micro_batches]
    return {
        "loss": trajectory.manifest.loss,
        "scales": sorted({round(batch.scale, 12) for batch in batches if batch.scale is not None}),
        "micro_batches": len(batches),
        "with_num_items": sum(batch.num_items is not None for batch in batches),
    }


def _clipped(trajectory: Trajectory) -> int:
    limit = trajectory.manifest.max_grad_norm
    return sum(step.grad_norm > limit for step in trajectory.steps()) if limit > 0 else 0


def _bytes(root: Path) -> dict[str, int]:
    return {
        "manifest": (root / MANIFEST).stat().st_size,
        "ledger": sum(path.stat().st_size for path in part_paths(root).values()),
        "statistics": sum(path.stat().st_size for path in part_paths(root, STATISTICS_DIRECTORY).values()),
        "snapshots": sum(path.stat().st_size for files in snapshot_paths(root).values() for path in files.values()),
    }
