"""GraNd: the norm of each row's gradient at the recorded snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.fingerprint import Hasher

from hf_prune._core.io import writing
from hf_prune.errors import TrajectoryError
from hf_prune.influence import cache
from hf_prune.influence.cache_eviction import in_use
from hf_prune.model.per_example import example_gradients
from hf_prune.model.replay import Replay

# Norms made by another version of the computation must not pass for these.
VERSION = "grand/v2"
# Snapshots that the mean is taken over: each costs a pass over the rows.
SNAPSHOTS = 4
# Bytes that the gradients of one batch of rows may take.
BUDGET = 1 << 30


def gradient_norms(replay: Replay, batch_size: int) -> np.ndarray:
    """
    `E |grad l_i(theta)|` over up to 4 snapshots, evenly spread over the window (arXiv 2107.07075).

    Args:
        replay (`Replay`): The recorded run with its model and rows; the norm is over the recorded parameters.
        batch_size (`int`): Rows in one pass, fewer where their gradients would take more than 1 GiB.

    Returns:
        `np.ndarray`: `(n,)`, float32.
    """
    steps = replay.trajectory.snapshot_steps
    chosen = sorted({steps[i] for i in np.linspace(0, len(steps) - 1, SNAPSHOTS).round().astype(int)})
    size = rows_at_once(replay, batch_size)
    total = np.zeros(len(replay.rows))
    for place, step in enumerate(chosen):
        theta = replay.theta(step)
        for part, batch in replay.rows.batches(size, f"Gradient norms, snapshot {place + 1} of {len(chosen)}"):
            norms = example_gradients(replay.objective, theta, batch).norm(dim=1)
            total[part.start : part.stop] += norms.cpu().double().numpy()
    return (total / len(chosen)).astype(np.float32)


def rows_at_once(replay: Replay, batch_size: int) -> int:
    """Rows whose gradients are computed in one pass: `batch_size`, or as many as fit into 1 GiB."""
    return max(1, min(batch_size, BUDGET // (4 * replay.trajectory.manifest.n_parameters)))


def cached(file: Path, rows: int) -> np.ndarray | None:
    """Norms of so many rows that an earlier call kept."""
    if not file.exists():
        return None
    found = cache.read(file).get("grand")
    if found is None or found.shape != (rows,) or found.dtype != torch.float32:
        raise TrajectoryError(f"{file} does not hold the norms of {rows} rows: {cache.CACHE.mend}.")
    return found.numpy()


def keep(file: Path, norms: np.ndarray) -> None:
    """Keeps norms for later calls."""
    with writing("Gradient norms, which are kept with the record,", file.parent), in_use(file.parent):
        cache.write(file, {"grand": torch.from_numpy(norms)})


def file_of(replay: Replay, *options: Any) -> Path:
    """Where the norms are kept, named after all that they depend on: the record holds only a part of the model."""
    digest = Hasher.hash([VERSION, replay.trajectory.digest, replay.objective.digest(), *options])
    return replay.trajectory.path / "scores" / f"grand-{digest}.safetensors"
