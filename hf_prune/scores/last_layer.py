"""The influence of each row on the last layer, as the ICLR 2023 method of dataset pruning estimates it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import one_hot

from hf_prune.errors import UnsupportedError
from hf_prune.influence.features import last_layer
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows

# What is added to the Hessian's diagonal.
DAMPING = 0.01
# Rows whose recursions run at once.
AT_ONCE = 500


@dataclass(frozen=True)
class Recursion:
    """
    How the inverse Hessian is estimated (LiSSA, [arXiv 1602.03943](https://hf.co/papers/1602.03943)).

    Attributes:
        depth (`int`): steps of each recursion.
        repeats (`int`): recursions that are averaged.
        batch (`int`): rows that each step's Hessian-vector product is the mean over.
    """

    depth: int
    repeats: int
    batch: int


LEAN = Recursion(100, 1, 16)


def last_layer_influence(
    objective: Objective, theta: torch.Tensor, rows: Rows, batch_size: int, seed: int = 0
) -> np.ndarray:
    """
    `H^-1 grad l_i / n` over weights and biases of the last linear layer.

    Yang et al., [arXiv 2205.09329](https://hf.co/papers/2205.09329), with one recursion a row.

    Args:
        objective (`Objective`): The model as a function of the recorded parameters.
        theta (`torch.Tensor`): Their values, `(p,)`.
        rows (`Rows`): All training rows.
        batch_size (`int`): Rows in one pass.
        seed (`int`, *optional*, defaults to 0): Draws the rows of the recursion.

    Returns:
        `np.ndarray`: `(n, classes * (inputs + 1))`, float32.

    Raises:
        `UnsupportedError`: Where no linear layer's output is a row's logits, or these are not of classes.
    """
    found = []
    for _, batch in rows.batches(batch_size, "Reading the last layer"):
        _, inputs, logits = last_layer(objective, theta, batch.inputs)
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)  # for the bias
        if logits.ndim != 2 or logits.shape[1] < 2 or batch.labels.ndim != 1 or batch.labels.is_floating_point():
            raise UnsupportedError("The last layer's influence is for classification of rows; leave last_layer out.")
        found.append((inputs, logits.softmax(dim=1), batch.labels))
    inputs, probabilities, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return influences(inputs, probabilities, labels, LEAN, seed)


def influences(
    inputs: torch.Tensor, probabilities: torch.Tensor, labels: torch.Tensor, how: Recursion, seed: int
) -> np.ndarray:
    """The influence of each row from the layer's inputs `(n, d + 1)` and probabilities `(n, classes)`; `(n, p)`."""
    errors = probabilities - one_hot(labels, probabilities.shape[1])
    found = []
    for part in torch.split(torch.arange(len(inputs)), AT_ONCE):
        gradients = errors[part, :, None] * inputs[part, None, :]
        found.append(inverse_products(inputs, probabilities, gradients, how, seed).flatten(1) / len(inputs))
    return torch.cat(found).cpu().numpy()


def inverse_products(
    inputs: torch.Tensor, probabilities: torch.Tensor, gradients: torch.Tensor, how: Recursion, seed: int
) -> torch.Tensor:
    """`(H + damping)^-1 gradients` by LiSSA, `(rows, classes, d + 1)`: one Hessian-vector product a row and step."""
    generator = torch.Generator().manual_seed(seed)
    # the recursion converges where the scaled Hessian is below 1; softmax's own is at most a half
    scale = 0.5 * float((inputs**2).sum(dim=1).max()) + DAMPING
    total = torch.zeros_like(gradients)
    for _ in range(how.repeats):
        estimate = gradients.clone()
        for chosen in torch.randint(len(inputs), (how.depth, how.batch), generator=generator):
            x, p = inputs[chosen], probabilities[chosen]
            a = torch.einsum("rcd,bd->rbc", estimate, x)
            a = p * a - p * (p * a).sum(dim=2, keepdim=True)
            product = torch.einsum("rbc,bd->rcd", a, x) / how.batch
            estimate = gradients + estimate - (product + DAMPING * estimate) / scale
        total += estimate
    return total / (how.repeats * scale)
