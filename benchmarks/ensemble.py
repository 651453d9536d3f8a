"""Many small MLPs trained at once, by the Trainer's rule: what makes dozens of subsets times seeds affordable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

WARM_UP, CLIP, BETAS, EPSILON = 0.1, 1.0, (0.9, 0.999), 1e-8
"""Of the runs: TrainingArguments(warmup_steps=0.1), and the defaults of its clipping and of AdamW."""


class Mlp(nn.Module):
    """One hidden layer of tanh; `loss` is the mean cross-entropy of the batch."""

    def __init__(self, inputs: int, hidden: int, classes: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, classes))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None):
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": _losses(logits[None], labels)[0], "logits": logits}


def train_together(
    x: torch.Tensor,
    y: torch.Tensor,
    subsets: Sequence[np.ndarray],
    seeds: Sequence[int],
    sizes: tuple[int, int, int],
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
) -> list[torch.Tensor]:
    """
    Trains an `Mlp` on each subset with each seed: AdamW, warm-up and linear decay, clipping, shuffled epochs.

    Args:
        x (`torch.Tensor`): Inputs, shape `(n, inputs)`.
        y (`torch.Tensor`): Classes, shape `(n,)`.
        subsets (`Sequence[np.ndarray]`): Row numbers, all of one length.
        seeds (`Sequence[int]`): Of initial weights and order.
        sizes (`tuple[int, int, int]`): Inputs, hidden units, classes.
        steps (`int`): Optimizer steps of every run.
        learning_rate (`float`): The highest.
        batch_size (`int`): Rows of a step; the last step of an epoch has what is left.

    Returns:
        `list[torch.Tensor]`: Weights and biases, first dimension `subsets x seeds`.
    """
    weights = _fresh(len(subsets), seeds, sizes)
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    warm_up = math.ceil(WARM_UP * steps)
    orders = [
        _batches(rows, np.random.default_rng([s, i]), batch_size) for i, rows in enumerate(subsets) for s in seeds
    ]
    for step in range(steps):
        batch = torch.from_numpy(np.stack([next(order) for order in orders]))
        loss = _losses(logits_of(weights, x[batch]), y[batch]).sum()
        gradients = torch.autograd.grad(loss, weights)
        norm = sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()
        clip = (CLIP / (norm + 1e-6)).clamp(max=1.0)[:, None, None]
        share = step / max(1, warm_up) if step < warm_up else (steps - step) / max(1, steps - warm_up)
        with torch.no_grad():
            for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                m.lerp_(g * clip, 1 - BETAS[0])
                v.lerp_((g * clip).square(), 1 - BETAS[1])
                scale = (v / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(EPSILON)
                w.sub_(learning_rate * share / (1 - BETAS[0] ** (step + 1)) * m / scale)
    return weights


def mean_losses(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """The mean loss of every run on the rows `x`, `y`: shape `(runs,)`."""
    with torch.no_grad():
        runs = len(weights[0])
        return _losses(logits_of(weights, x.expand(runs, *x.shape)), y.expand(runs, -1)).numpy()


def logits_of(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits `(runs, batch, classes)` of inputs `(runs, batch, inputs)`."""
    inner, inner_bias, outer, outer_bias = weights
    return torch.baddbmm(outer_bias, torch.tanh(torch.baddbmm(inner_bias, x, inner)), outer)


def _losses(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of each run, `(runs,)`."""
    flat = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return flat.view(len(logits), -1).mean(1)


def _fresh(subsets: int, seeds: Sequence[int], sizes: tuple[int, int, int]) -> list[torch.Tensor]:
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append([p.detach() for p in Mlp(*sizes).parameters()])
    inner, inner_bias, outer, outer_bias = (torch.stack(part) for part in zip(*models, strict=True))
    parts = (inner.mT, inner_bias[:, None], outer.mT, outer_bias[:, None])
    return [part.repeat(subsets, 1, 1).contiguous().requires_grad_() for part in parts]


def _batches(rows: np.ndarray, rng: np.random.Generator, size: int) -> Iterator[np.ndarray]:
    while True:
        order = rng.permutation(rows)
        yield from (order[start : start + size] for start in range(0, len(order), size))
