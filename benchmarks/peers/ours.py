"""
hf_prune's sweep, with the margins of single test rows as queries.

The queries of `add_influence` are k random sums of held-out outputs. Here each test row is one query, the
gradient of its margin at the last parameters; modes and curvatures are those of `add_influence`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.func import grad, vmap

from hf_prune.influence.calibration import measure_gn_scale
from hf_prune.influence.dense.sweep import DenseSweep
from hf_prune.model.per_example import example_gradients
from hf_prune.model.replay import Replay
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
    replay = Replay.of(run.task.train, trajectory, run.model)
    scale = measure_gn_scale(replay) if curvature == "gauss-newton" else 1.0
    sweep = DenseSweep(replay, curvature="gauss-newton" if curvature == PLAIN else curvature, gn_scale=scale)
    queries = margin_queries(run, replay)
    if mode == "visits":
        return sweep.visits(queries)
    total = np.zeros((len(replay.rows), len(queries)))
    for segment in sweep.segments(queries):
        for part, batch in replay.rows.batches(BATCH):
            gradients = example_gradients(replay.objective, segment.theta, batch)
            total[part.start : part.stop] -= (gradients @ segment.cotangents.T).double().numpy() / len(replay.rows)
    return total


def margin_queries(run: Run, replay: Replay) -> torch.Tensor:
    """The gradient of each test row's margin, `(m, p)`."""
    rows, objective, theta = replay.rows.of(run.task.test), replay.objective, replay.theta(replay.last)

    def one(theta: torch.Tensor, inputs: dict[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        logits = objective.logits(theta, {name: value[None] for name, value in inputs.items()})
        return margins(logits, label[None])[0]

    batch = rows.batch(range(len(rows)))
    return vmap(grad(one), (None, 0, 0))(theta, batch.inputs, batch.labels)
