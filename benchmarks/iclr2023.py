"""
The ICLR 2023 method, Yang et al., [arXiv 2205.09329](https://hf.co/papers/2205.09329), as a baseline, with its cost.

The influence of every row on the last layer, `H^-1 grad l_i / n`, by stochastic estimation (LiSSA), one recursion of
Hessian-vector products a row; then the subset of the wanted size whose summed influence is shortest, by simulated
annealing over swaps of a removed row with a kept one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from studies import Arrays, Classifier
from torch import nn

DEPTH = 100
"""Steps of each recursion."""
BATCH = 16
"""Rows that each step's Hessian-vector product is the mean over."""
DAMPING = 0.01
"""What is added to the Hessian's diagonal."""
SWAPS = 20
"""Swaps tried in the annealing, for each row of the dataset."""


@dataclass(frozen=True)
class Outcome:
    """
    What the method chose, and what it cost.

    Args:
        keep (`np.ndarray`): Kept rows, sorted.
        products (`int`): Hessian-vector products of the last layer, each on `BATCH` rows.
        seconds_influence (`float`), seconds_select (`float`): Of the two parts.
        residual (`float`): Length of the summed influence of the removed rows.
    """

    keep: np.ndarray
    products: int
    seconds_influence: float
    seconds_select: float
    residual: float


def last_layer(model: Classifier, rows: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the last linear layer, with a 1 for its bias, `(n, d + 1)`, and probabilities `(n, classes)`."""
    caught: list[torch.Tensor] = []
    layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    hook = layer.register_forward_hook(lambda module, inputs, output: caught.append(inputs[0].detach()))
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor(part))["logits"] for part in np.array_split(rows.x, 8)])
    hook.remove()
    inputs = torch.cat(caught)
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1), logits.softmax(dim=1)


def inverse_products(
    inputs: torch.Tensor, probabilities: torch.Tensor, gradients: torch.Tensor, seed: int
) -> tuple[torch.Tensor, int]:
    """`(H + damping)^-1 gradients` by LiSSA, `(rows, classes, d + 1)`, and the number of Hessian-vector products."""
    generator = torch.Generator().manual_seed(seed)
    # the recursion converges where the scaled Hessian is below 1; softmax's own is at most a half
    scale = 0.5 * float((inputs**2).sum(dim=1).max()) + DAMPING
    estimate = gradients.clone()
    for _ in range(DEPTH):
        chosen = torch.randint(len(inputs), (BATCH,), generator=generator)
        x, p = inputs[chosen], probabilities[chosen]
        a = torch.einsum("rcd,bd->rbc", estimate, x)
        a = p * a - p * (p * a).sum(dim=2, keepdim=True)
        product = torch.einsum("rbc,bd->rcd", a, x) / BATCH
        estimate = gradients + estimate - (product + DAMPING * estimate) / scale
    return estimate / scale, DEPTH * len(gradients)


def influences(model: Classifier, rows: Arrays, seed: int) -> tuple[np.ndarray, int]:
    """Influence of removing each row on the last layer, `(n, p)`, and the Hessian-vector products it took."""
    inputs, probabilities = last_layer(model, rows)
    errors = probabilities - nn.functional.one_hot(torch.tensor(rows.y), probabilities.shape[1])
    found, products = [], 0
    for part in torch.split(torch.arange(len(inputs)), 500):
        gradients = errors[part, :, None] * inputs[part, None, :]
        solved, count = inverse_products(inputs, probabilities, gradients, seed)
        found.append(solved.flatten(1) / len(inputs))
        products += count
    return torch.cat(found).numpy(), products


def anneal(vectors: np.ndarray, removed: int, seed: int) -> tuple[np.ndarray, float]:
    """Mask of `removed` rows whose vectors' sum is short, and its length."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))
    total = vectors[order[:removed]].sum(axis=0, dtype=np.float64)
    length = np.linalg.norm(total)
    tries = SWAPS * len(vectors)
    heat = length / 10
    places = np.stack([rng.integers(0, removed, tries), rng.integers(removed, len(vectors), tries)], axis=1)
    luck = np.log(rng.random(tries))
    for step, (out, into) in enumerate(places):
        moved = total - vectors[order[out]] + vectors[order[into]]
        new = np.linalg.norm(moved)
        if length - new > luck[step] * heat * (1 - step / tries) ** 2:
            order[[out, into]] = order[[into, out]]
            total, length = moved, new
    mask = np.zeros(len(vectors), dtype=bool)
    mask[order[:removed]] = True
    return mask, float(length)


def select_iclr2023(model: Classifier, rows: Arrays, rate: float, seed: int = 0) -> Outcome:
    """
    Chooses rows as that paper does.

    Args:
        model (`Classifier`): The trained model, whose last linear layer is looked at.
        rows (`Arrays`): Its training rows.
        rate (`float`): Share of rows to remove.
        seed (`int`, *optional*, defaults to 0): Draws the recursions' rows and the swaps.
    """
    start = time.perf_counter()
    vectors, products = influences(model, rows, seed)
    middle = time.perf_counter()
    mask, residual = anneal(vectors, round(rate * len(vectors)), seed)
    return Outcome(np.flatnonzero(~mask), products, middle - start, time.perf_counter() - middle, residual)
