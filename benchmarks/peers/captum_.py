"""TracInCP of captum (arXiv 2002.08484), and gradient dot products as its last checkpoint alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFast
from torch import nn
from torch.utils.data import TensorDataset

from peers.recorded import Run
from peers.tasks import margins

BATCH = 128
# Parameters up to which all are looked at. Gradients one by one of larger models take hours here; captum's
# TracInCPFast, which its documentation recommends for them, looks at the last layer.
MOST = 1 << 21
CHECKPOINTS = 8


def tracin(runs: list[Run], first: int = 0) -> np.ndarray:
    """Checkpoints at the ends of epochs after step `first`, each with the learning rate of the step that made it."""
    # One checkpoint at a time, for captum holds the test rows' gradients at all of them.
    return np.mean(
        [sum(_scores(run, checkpoint) for checkpoint in run.checkpoints(first, CHECKPOINTS)) for run in runs], axis=0
    )


def gradient_dot(runs: list[Run], first: int = 0) -> np.ndarray:
    """The trained model alone."""
    return np.mean([_scores(run, len(run.trajectory)) for run in runs], axis=0)


def _scores(run: Run, checkpoint: int) -> np.ndarray:
    def load(model: nn.Module, step: int) -> float:
        nn.utils.vector_to_parameters(run.thetas[step], model.parameters())
        # The learning rate at the very end of a linear schedule is 0, so it is the last step's own.
        return run.trajectory.step(step - 1).learning_rates[0]

    model, kind = run.logits_model(), TracInCP
    options: dict[str, Any] = {"loss_fn": nn.CrossEntropyLoss(reduction="none"), "test_loss_fn": margins}
    if len(run.last) > MOST:
        kind, layer = TracInCPFast, [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
        options = {
            "final_fc_layer": layer,
            "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
            "test_loss_fn": lambda logits, labels: margins(logits, labels).sum(),
        }
        options["test_loss_fn"].reduction = "sum"
    method = kind(
        model,
        train_dataset=TensorDataset(*run.task.train_tensors),
        checkpoints=[checkpoint],
        checkpoints_load_func=load,
        batch_size=BATCH,
        **options,
    )
    # <grad margin, grad loss>: how much a step on the row lowers the margin, so how much its removal raises it.
    found: torch.Tensor = method.influence(tuple(run.task.test_tensors))  # type: ignore[assignment]
    return found.T.detach().double().numpy()
