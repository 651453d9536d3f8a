"""The factor of the Gauss-Newton matrix against Hessians computed whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from hf_prune import Trajectory
from hf_prune.influence.calibration import SAMPLES, measure_gn_scale
from hf_prune.model.objective import Objective
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from tests.influence.exact_run import ExactRun
from tests.influence.runs import record
from tests.toys import Mlp, vectors

RUNS = {
    "sgd": ("SGD", {}, {}),
    "adamw": ("AdamW", {}, {"lr": 0.02}),
    "adamw clipped": ("AdamW", {"eps": 1e-3}, {"lr": 0.02, "max_norm": 0.5}),
}


class Linear(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 3))


def replay_of(run: ExactRun) -> Replay:
    objective = Objective(run.model, run.manifest.parameters, dtype=torch.float64)
    return Replay(run, objective, Rows(run.dataset, objective.model))


def by_whole_matrices(run: ExactRun) -> float:
    """The same ratio from the Hessian and the Gauss-Newton matrix themselves."""
    names = [name for name, _ in run.model.named_parameters()]
    shapes = [p.shape for _, p in run.model.named_parameters()]
    x, y = torch.tensor(run.dataset["x"], dtype=torch.float64), torch.tensor(run.dataset["labels"])
    generator = torch.Generator().manual_seed(0)
    found = np.zeros(2)
    for i in range(SAMPLES):
        t = int((i + 0.5) * run.steps_count / SAMPLES)
        rows = torch.from_numpy(run.order[t])
        signs = (torch.randint(0, 2, (len(rows),), generator=generator) * 2 - 1).double()

        def logits(theta: torch.Tensor, rows: torch.Tensor = rows) -> torch.Tensor:
            parts = theta.split([shape.numel() for shape in shapes])
            values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            return functional_call(run.model, values, (x[rows],))["logits"]

        def losses(theta: torch.Tensor, rows: torch.Tensor = rows) -> torch.Tensor:
            return nn.functional.cross_entropy(logits(theta), y[rows], reduction="none") / len(rows)

        theta = run.thetas[t]
        g = jacrev(losses)(theta).T @ signs
        denominator = replay_of(run).denominator(t)
        u = g if denominator is None else g / denominator
        whole = u @ hessian(lambda theta: losses(theta).sum())(theta) @ u
        moved, p = jacrev(logits)(theta) @ u, logits(theta).softmax(1)
        straight = ((p * moved**2).sum(1) - (p * moved).sum(1) ** 2).mean()
        clip = min(1.0, run.max_norm / run.norms[t]) if run.max_norm else 1.0
        found += np.array([float(whole), float(straight)]) * run.rates[t] * clip / float(g @ u)
    return float(found[0] / found[1])


@pytest.mark.parametrize("name", RUNS)
def test_factor_is_the_ratio_of_hessian_to_gauss_newton_along_signed_gradients(name: str):
    optimizer, options, settings = RUNS[name]
    run = ExactRun(optimizer, options, steps_count=16, **settings)
    truth = by_whole_matrices(run)
    assert abs(truth - 1) > 0.03, "the run tells nothing"
    assert measure_gn_scale(replay_of(run)) == pytest.approx(truth, rel=0.01)


def test_factor_of_a_linear_model_is_one(tmp_path: Path):
    run = record(Linear(), vectors(48), vectors(16, seed=1), tmp_path, learning_rate=0.1)
    replay = Replay.of(run.rows, Trajectory.open(run.path), run.model)
    assert measure_gn_scale(replay) == pytest.approx(1.0, abs=0.01)
