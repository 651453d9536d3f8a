"""Every adjoint against central differences in the example weights, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_prune.errors import UnsupportedError
from hf_prune.influence.dense.sweep import DenseSweep
from hf_prune.model.objective import Objective
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from hf_prune.optimizers import adjoint_for
from tests.influence.exact_run import ExactRun

RUNS = {
    "sgd": ("SGD", {}, {}),
    "sgd coupled decay": ("SGD", {"weight_decay": 0.1}, {}),
    "momentum": ("SGD", {"momentum": 0.9}, {}),
    "momentum decay dampening": ("SGD", {"momentum": 0.8, "weight_decay": 0.05, "dampening": 0.3}, {}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}, {}),
    "adamw": ("AdamW", {"weight_decay": 0.1}, {"lr": 0.02}),
    "adam coupled decay": ("Adam", {"weight_decay": 0.1, "betas": (0.8, 0.95)}, {"lr": 0.02}),
    "adamw amsgrad": ("AdamW", {"amsgrad": True, "betas": (0.9, 0.5)}, {"lr": 0.02}),
    "sgd clipped": ("SGD", {}, {"max_norm": 0.5}),
    "adamw clipped": ("AdamW", {"eps": 1e-3}, {"lr": 0.02, "max_norm": 0.5}),
}


def error_of(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def swept(run: ExactRun, queries: torch.Tensor, curvature: str = "exact", finite: bool = False):
    objective = Objective(run.model, run.manifest.parameters, dtype=torch.float64)
    replay = Replay(run, objective, Rows(run.dataset, objective.model))
    return DenseSweep(replay, curvature=curvature, finite=finite).visits(queries)


@pytest.mark.parametrize("name", RUNS)
def test_adjoint_equals_central_differences(name: str):
    optimizer, options, settings = RUNS[name]
    run = ExactRun(optimizer, options, **settings)
    queries = torch.randn(3, len(run.thetas[0]), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    predicted = torch.tensor(swept(run, queries), dtype=torch.float64)
    frozen = run.moments if options.get("amsgrad") else None  # the recorded moment is the largest so far, and held
    h = 1e-5
    for row in (0, 5, 11):
        answers = []
        for sign in (1, -1):
            weights = torch.ones(run.rows, dtype=torch.float64)
            weights[row] += sign * h
            moved = ExactRun(optimizer, options, **settings, weights=weights, frozen=frozen)
            answers.append(queries @ moved.thetas[-1])
        truth = -(answers[0] - answers[1]) / (2 * h)
        error = (predicted[row] - truth).norm() / truth.norm()
        assert error < 1e-6, f"row {row}: relative error {error:.2e}"


@pytest.mark.parametrize("name", ["adamw", "adamw amsgrad", "adam coupled decay", "adamw clipped"])
def test_ground_truth_is_torchs_own_adam(name: str):
    optimizer, options, settings = RUNS[name]
    run = ExactRun(optimizer, options, **settings)
    again = ExactRun(optimizer, options, **settings, steps_count=0)
    model, x = again.model, torch.tensor(run.dataset["x"], dtype=torch.float64)
    y = torch.tensor(run.dataset["labels"])
    torch_optimizer = getattr(torch.optim, optimizer)(again._groups(), lr=run.lr, **options)
    for t, ids in enumerate(run.order):
        for group in torch_optimizer.param_groups:
            group["lr"] = run.rates[t]
        torch_optimizer.zero_grad()
        model(x[ids], y[ids])["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.max_norm or float("inf"))
        torch_optimizer.step()
    assert torch.allclose(again._flat(), run.thetas[-1], atol=1e-12)


def test_finite_clipping_is_closer_to_a_true_removal_than_its_slope():
    run = ExactRun("SGD", {}, max_norm=0.3, lr=0.05, batch=3, steps_count=6)
    queries = torch.eye(len(run.thetas[0]), dtype=torch.float64)
    errors = {}
    for finite in (True, False):
        predicted = torch.tensor(swept(run, queries, finite=finite), dtype=torch.float64)
        distance = []
        for row in run.order[2]:
            weights = torch.ones(run.rows, dtype=torch.float64)
            weights[row] = 0
            truth = ExactRun("SGD", {}, max_norm=0.3, lr=0.05, batch=3, steps_count=6, weights=weights).thetas[-1]
            truth = truth - run.thetas[-1]
            distance.append(float((predicted[row] - truth).norm() / truth.norm()))
        errors[finite] = max(distance)
    assert errors[True] < 0.6 * errors[False]


def test_gauss_newton_is_exact_where_the_model_is_linear():
    run = ExactRun("SGD", {"momentum": 0.9})
    run.model.net = torch.nn.Sequential(torch.nn.Linear(8, 3)).double()
    run.__dict__.update(thetas=[], moments=[], norms=[])
    run._train()
    queries = torch.randn(20, len(run.thetas[0]), dtype=torch.float64)
    exact = swept(run, queries, "exact")
    assert error_of(swept(run, queries, "gauss-newton"), exact) < 2e-3
    assert error_of(swept(run, queries, "none"), exact) > 0.1


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"name": "Adafactor", "groups": [{}]}, "no adjoint here; train with one of AdamW, Adam, .*SGD"),
        ({"name": "AdamW", "groups": [{"maximize": True}]}, "maximize=True has no adjoint"),
        ({"name": "SGD", "groups": [{"maximize": True}]}, "maximize=True has no adjoint"),
    ],
)
def test_an_optimizer_without_adjoint_is_refused(optimizer: dict, message: str):
    with pytest.raises(UnsupportedError, match=message):
        adjoint_for(optimizer, [3], [0])
