"""DVEmb (arXiv 2412.09538) and influence functions by conjugate gradients, of dattri."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dattri.algorithm.dvemb import DVEmbAttributor
from dattri.algorithm.influence_function import IFAttributorCG
from dattri.task import AttributionTask
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from peers.recorded import Run
from peers.tasks import Logits, margins

# Up to so many parameters DVEmb runs without projection; above, with the paper's Kronecker one to this dimension.
FULL, PROJECTED = 4000, 4096
TESTS = 10
# Damping of the Hessian; without any it is singular or indefinite here, and conjugate gradients run away.
DAMPINGS = (0.01, 0.1, 1.0, 10.0)


def objective(logits: torch.Tensor, labels: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """The mean training loss, or the margin for rows with `asked`: DVEmb knows one function for both."""
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return torch.where(asked, margins(logits, labels), losses).mean()


def dvemb(runs: list[Run], first: int = 0) -> np.ndarray:
    """Caches the steps from `first` on as they were trained, then goes back over them."""
    return np.mean([_dvemb(run, first) for run in runs], axis=0)


def influence_function(runs: list[Run], first: int = 0, *, damping: float = 0.1) -> np.ndarray:
    """Inverse Hessian of the whole training loss, 10 iterations as by default."""
    return np.mean([_influence_function(run, damping) for run in runs], axis=0)


def _dvemb(run: Run, first: int) -> np.ndarray:
    model = run.logits_model()
    small = len(run.last) <= FULL
    kind: dict[str, Any] = {} if small else {"factorization_type": "kronecker", "proj_dim": PROJECTED}
    method = DVEmbAttributor(AttributionTask(_loss(model, small), model, model.state_dict()), **kind)
    x, y = run.task.train_tensors
    for t in range(first, len(run.trajectory)):
        step = run.trajectory.step(t)
        rows = torch.from_numpy(step.ids)
        nn.utils.vector_to_parameters(run.thetas[t], model.parameters())
        data = (x[rows], y[rows], torch.zeros(len(rows), dtype=torch.bool))
        epoch = (t - first) // run.steps_per_epoch
        method.cache_gradients(epoch, data, rows, step.learning_rates[0])
    nn.utils.vector_to_parameters(run.last, model.parameters())
    method.cache()
    tests, labels = run.task.test_tensors
    asked = TensorDataset(tests, labels, torch.ones(len(tests), dtype=torch.bool))
    return method.attribute(DataLoader(asked, batch_size=len(tests))).detach().double().numpy()


def _loss(model: Logits, functional: bool) -> Any:
    """The two signatures that DVEmb asks for, without and with factored gradients."""

    def of_parameters(parameters: dict[str, torch.Tensor], data: Any) -> torch.Tensor:
        x, y, asked = (part if part.ndim else part[None] for part in (data[0][None], data[1], data[2]))
        return objective(functional_call(model, parameters, (x,)), y, asked)

    def of_model(model: nn.Module, data: Any, device: Any) -> torch.Tensor:
        x, y, asked = data
        return objective(model(x), y, asked)

    return of_parameters if functional else of_model


def _influence_function(run: Run, damping: float) -> np.ndarray:
    model = run.logits_model()

    def loss(parameters: dict[str, torch.Tensor], data: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (data[0],)), data[1])

    def target(parameters: dict[str, torch.Tensor], data: Any) -> torch.Tensor:
        return margins(functional_call(model, parameters, (data[0],)), data[1]).sum()

    method = IFAttributorCG(AttributionTask(loss, model, model.state_dict(), target), regularization=damping)
    # In one batch: the inverse is taken batch by batch, and the scores of a part of the rows are another Hessian's.
    train = DataLoader(TensorDataset(*run.task.train_tensors), batch_size=len(run.task.train))
    method.cache(train)
    tests = DataLoader(TensorDataset(*run.task.test_tensors), batch_size=TESTS)
    return method.attribute(train, tests).detach().double().numpy() / len(run.task.train)
