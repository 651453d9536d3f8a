"""
hf_prune's sweep, asked the margins of single test rows.

`add_influence` asks k random sums of held-out outputs. Here the same engine gets one direction for each test row, the
gradient of its margin at the last parameters; modes and curvatures are those of `add_influence`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.func import grad, vmap

from hf_prune.influence.calibration import curvature_factor
from hf_prune.influence.dense.sweep import Sweep
from hf_prune.model.objective import Objective
from hf_prune.model.per_example import example_gradients
from hf_prune.model.rows import Rows
from peers.recorded import Run
from peers.tasks import margins

BATCH = 64
# Gauss-Newton without the factor that is measured for it.
PLAIN = "gauss-newton, factor 1"


def scores(runs: list[Run], *, mode: str, curvature: str = "auto") -> np.ndarray:
    """Predicted changes of the test rows' margins `(n, m)`, the mean over the runs."""
    return np.mean([_scores(run, mode, curvature) for run in runs], axis=0)


def _scores(run: Run, mode: str, curvature: str) -> np.ndarray:
    trajectory = run.trajectory
    if curvature == "auto":
        curvature = "exact" if trajectory.manifest.optimizer["name"] == "SGD" else "gauss-newton"
    objective = Objective(run.model, trajectory.manifest.parameters)
    rows = Rows(run.task.train, objective.model)
    plain = curvature == PLAIN
    sweep = Sweep(trajectory, objective, rows, curvature="gauss-newton" if plain else curvature)
    sweep.factor = curvature_factor(sweep) if curvature == "gauss-newton" else 1.0
    questions = margin_directions(run, objective, trajectory.parameters_at(trajectory.window[1]))
    if mode == "visits":
        return sweep.visits(questions)
    total = np.zeros((len(rows), len(questions)))
    for segment in sweep.segments(questions):
        for start in range(0, len(rows), BATCH):
            part = range(start, min(start + BATCH, len(rows)))
            gradients = example_gradients(objective, segment.theta, rows.batch(part))
            total[part.start : part.stop] -= (gradients @ segment.cotangents.T).double().numpy() / len(rows)
    return total


def margin_directions(run: Run, objective: Objective, theta: torch.Tensor) -> torch.Tensor:
    """The gradient of each test row's margin, `(m, p)`."""
    rows = Rows(run.task.test, objective.model)

    def one(theta: torch.Tensor, inputs: dict[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        logits = objective.logits(theta, {name: value[None] for name, value in inputs.items()})
        return margins(logits, label[None])[0]

    batch = rows.batch(range(len(rows)))
    return vmap(grad(one), (None, 0, 0))(theta, batch.inputs, batch.labels)
