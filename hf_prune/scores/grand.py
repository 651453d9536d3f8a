"""GraNd: the norm of each row's gradient at the recorded snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from datasets.fingerprint import Hasher
from datasets.utils import tqdm

from hf_prune._core.io import write_atomically
from hf_prune.model.objective import Objective
from hf_prune.model.per_example import example_gradients
from hf_prune.model.rows import Rows
from hf_prune.trajectory.trajectory import Trajectory

# Norms made by another version of the computation must not pass for these.
VERSION = "grand/v1"
# Snapshots that the mean is taken over: each costs a pass over the rows.
SNAPSHOTS = 4
# Bytes that the gradients of one batch of rows may take.
BUDGET = 1 << 30


def gradient_norms(trajectory: Trajectory, objective: Objective, rows: Rows, batch_size: int) -> np.ndarray:
    """
    `E |grad l_i(theta)|` over up to 4 snapshots, evenly spread over the window (arXiv 2107.07075).

    Args:
        trajectory (`Trajectory`): The recorded run.
        objective (`Objective`): The model as a function of the recorded parameters; the norm is over these.
        rows (`Rows`): All training rows.
        batch_size (`int`): Rows in one pass, fewer where their gradients would take more than 1 GiB.

    Returns:
        `np.ndarray`: `(n,)`, float32.
    """
    steps = trajectory.snapshot_steps
    chosen = sorted({steps[i] for i in np.linspace(0, len(steps) - 1, SNAPSHOTS).round().astype(int)})
    size = max(1, min(batch_size, BUDGET // (4 * trajectory.manifest.n_parameters)))
    total = np.zeros(len(rows))
    with tqdm(total=len(chosen) * len(rows), desc="Gradient norms", unit="row") as bar:
        for step in chosen:
            theta = trajectory.parameters_at(step).to(objective.device, objective.dtype)
            for start in range(0, len(rows), size):
                part = range(start, min(start + size, len(rows)))
                norms = example_gradients(objective, theta, rows.batch(part)).norm(dim=1)
                total[part.start : part.stop] += norms.double().cpu().numpy()
                bar.update(len(part))
    return (total / len(chosen)).astype(np.float32)


def cached(file: Path) -> np.ndarray | None:
    """Norms that an earlier call kept."""
    return safetensors.numpy.load_file(file)["grand"] if file.is_file() else None


def keep(file: Path, norms: np.ndarray) -> None:
    """Keeps norms for later calls."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda path: safetensors.numpy.save_file({"grand": norms}, path))


def file_of(trajectory: Trajectory, objective: Objective, *options: Any) -> Path:
    """Where the norms are kept, named after all that they depend on: the record holds only a part of the model."""
    fixed = {name: value.cpu().numpy() for name, value in sorted(objective.fixed.items())}
    digest = Hasher.hash([VERSION, trajectory.digest, str(objective.model), fixed, *options])
    return trajectory.path / "scores" / f"grand-{digest}.safetensors"
