"""TRAK of traker (arXiv 2303.14186), set up for a small model on the CPU."""

from __future__ import annotations

import logging
import tempfile

import numpy as np
import torch
from torch.func import functional_call, grad, vmap
from trak import TRAKer

from peers.recorded import Run
from peers.tasks import margins

BATCH = 256
# With a dimension above the number of rows, or without a ridge, X^T X has no inverse; at most half the rows.
DIMENSION = 512
# Ridges in units of the mean eigenvalue of X^T X; the library's default of 0 is useless here.
RIDGES = (0.1, 1.0, 10.0, 100.0)


def trak(runs: list[Run], first: int = 0, *, ridge: float = 1.0) -> np.ndarray:
    """TRAK over the trained models of all runs, as its authors average them."""
    x, y = run_tensors = runs[0].task.train_tensors
    tests = runs[0].task.test_tensors
    models = [run.logits_model() for run in runs]
    strength = ridge * _mean_eigenvalue(models[0], *run_tensors)
    with tempfile.TemporaryDirectory() as directory:
        traker = TRAKer(
            models[0], "image_classification", len(x), save_dir=directory, device="cpu",
            proj_dim=min(DIMENSION, len(x) // 2), use_half_precision=False, lambda_reg=strength,
            logging_level=logging.ERROR,
        )  # fmt: skip
        states = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
        for number, state in enumerate(states):
            traker.load_checkpoint(state, model_id=number)
            for part in torch.arange(len(x)).split(BATCH):
                traker.featurize((x[part], y[part]), num_samples=len(part))
        traker.finalize_features()
        for number, state in enumerate(states):
            traker.start_scoring_checkpoint("test", state, number, num_targets=len(tests[0]))
            for part in torch.arange(len(tests[0])).split(BATCH):
                traker.score((tests[0][part], tests[1][part]), num_samples=len(part))
        found = np.array(traker.finalize_scores("test"), dtype="float64")
    # A TRAK score is what a row adds to the margin; leaving it out takes that away.
    return -found


def _mean_eigenvalue(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Of `X^T X` over the projected margin gradients, from their lengths: `sum_i |g_i|^2 / p`."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def one(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return margins(functional_call(model, weights, (x[None],)), y[None])[0]

    gradients = vmap(grad(one), (None, 0, 0))(weights, x[:BATCH], y[:BATCH])
    squares = sum(float(g.square().sum()) for g in gradients.values())
    return squares * len(x) / len(x[:BATCH]) / sum(value.numel() for value in weights.values())
