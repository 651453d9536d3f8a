"""Per-example gradients, and the factors of each example's Gauss-Newton matrix."""

from __future__ import annotations

import torch
from torch.func import grad, hessian, vjp, vmap

from hf_prune.influence.objective import Batch, Objective

# Eigenvalues of the Hessian of a loss in its logits below this share of the largest are rounding.
RANK_TOLERANCE = 1e-6


def example_gradients(objective: Objective, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The gradient of each example's loss, `(B, p)`."""
    loss = objective.loss(batch)

    def one(theta: torch.Tensor, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        logits = objective.logits(theta, {name: value.unsqueeze(0) for name, value in inputs.items()})
        return loss.losses(logits, labels.unsqueeze(0))[0]

    return vmap(grad(one), in_dims=(None, 0, 0))(theta, batch.inputs, batch.labels)


def gradients_and_factors(
    objective: Objective, theta: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Each example's gradient `(B, p)` and the factors `(B, r, p)` of its Gauss-Newton matrix.

    With z the logits of an example and `d^2 l / d z^2 = R R^T`, the factors are the rows of `R^T dz/dtheta`, so
    that the Gauss-Newton matrix is the sum of their outer products. For a softmax over C classes r is C - 1.
    """
    loss = objective.loss(batch)

    def of_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss.losses(logits.unsqueeze(0), labels.unsqueeze(0))[0]

    with torch.no_grad():
        logits = objective.logits(theta, batch.inputs)
        slopes = vmap(grad(of_logits))(logits, batch.labels)
        curvature = vmap(hessian(of_logits))(logits, batch.labels)
        size = logits[0].numel()
        values, vectors = torch.linalg.eigh(curvature.view(len(batch), size, size))
        values = values.clamp(min=0)
        rank = int((values > RANK_TOLERANCE * values.amax()).any(0).sum())
        roots = vectors[:, :, size - rank :] * values[:, None, size - rank :].sqrt()
        cotangents = torch.cat([slopes.view(len(batch), 1, size), roots.transpose(1, 2)], 1)

    def one(inputs: dict[str, torch.Tensor], cotangents: torch.Tensor) -> torch.Tensor:
        def single(theta: torch.Tensor) -> torch.Tensor:
            return objective.logits(theta, {name: value.unsqueeze(0) for name, value in inputs.items()})[0].flatten()

        pull = vjp(single, theta)[1]
        return vmap(lambda cotangent: pull(cotangent)[0])(cotangents)

    rows = vmap(one)(batch.inputs, cotangents)
    return rows[:, 0], rows[:, 1:]


def batch_gradient(objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
    """The gradient `(p,)` of the weighted sum of the examples' losses."""
    return grad(lambda theta: objective.losses(theta, batch) @ weights)(theta)
