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
# Parameters that its projection on a CPU can carry; of larger models only as many of the last ones are looked at.
MOST, MEMORY = 1 << 21, 1 << 29
# With a dimension above the number of rows, or without a ridge, X^T X has no inverse; at most half the rows.
DIMENSION = 512
# Ridges in units of the mean eigenvalue of X^T X; the library's default of 0 is useless here.
RIDGES = (0.1, 1.0, 10.0, 100.0)


def trak(runs: list[Run], first: int = 0, *, ridge: float = 1.0) -> np.ndarray:
    """TRAK over the trained models of all runs, as its authors average them."""
    x, y = run_tensors = runs[0].task.train_tensors
    tests = runs[0].task.test_tensors
    models = [run.logits_model() for run in runs]
    looked_at = _last(models[0])
    batch = min(BATCH, MEMORY // (4 * sum(p.numel() for p in looked_at.values())))
    strength = ridge * _mean_eigenvalue(models[0], looked_at, *run_tensors)
    with tempfile.TemporaryDirectory() as directory:
        traker = TRAKer(
            models[0],
            "image_classification",
            len(x),
            save_dir=directory,
            device="cpu",
            proj_dim=min(DIMENSION, len(x) // 2),
            use_half_precision=False,
            lambda_reg=strength,
            grad_wrt=list(looked_at),
            logging_level=logging.ERROR,
        )
        states = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
        for number, state in enumerate(states):
            traker.load_checkpoint(state, model_id=number)
            for part in torch.arange(len(x)).split(batch):
                traker.featurize((x[part], y[part]), num_samples=len(part))
        traker.finalize_features()
        for number, state in enumerate(states):
            traker.start_scoring_checkpoint("test", state, number, num_targets=len(tests[0]))
            for part in torch.arange(len(tests[0])).split(batch):
                traker.score((tests[0][part], tests[1][part]), num_samples=len(part))
        found = np.array(traker.finalize_scores("test"), dtype="float64")
    # A TRAK score is what a row adds to the margin; leaving it out takes that away.
    return -found


def _last(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The last parameters, no more than `MOST` entries."""
    found: dict[str, torch.Tensor] = {}
    room = MOST
    for name, value in reversed(list(model.named_parameters())):
        room -= value.numel()
        if room < 0:
            break
        found[name] = value.detach()
    return dict(reversed(found.items()))


def _mean_eigenvalue(
    model: torch.nn.Module, looked_at: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> float:
    """Of `X^T X` over the projected margin gradients, from their lengths: `sum_i |g_i|^2 / p`."""

    def one(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return margins(functional_call(model, weights, (x[None],)), y[None])[0]

    size = sum(value.numel() for value in looked_at.values())
    rows = min(BATCH, MEMORY // (4 * size))
    gradients = vmap(grad(one), (None, 0, 0))(looked_at, x[:rows], y[:rows])
    squares = sum(float(g.square().sum()) for g in gradients.values())
    return squares * len(x) / len(x[:rows]) / size
