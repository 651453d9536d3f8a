"""Per-example gradients, the batch's gradient, and factors of its Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.func import grad, vjp, vmap

from hf_prune.model.batch import Batch
from hf_prune.model.losses import Inputs
from hf_prune.model.micro_batches import parts_of
from hf_prune.model.objective import Objective

# Share of a batch's curvature in the logits that may be left out; what a fitted row adds is far below it.
TRACE_TOLERANCE = 1e-3


def example_gradients(objective: Objective, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The gradient of each example's loss, `(B, p)`."""
    loss = objective.loss(batch)

    def one(theta: torch.Tensor, inputs: Inputs, labels: torch.Tensor, others: Inputs) -> torch.Tensor:
        logits = objective.logits(theta, {name: value.unsqueeze(0) for name, value in inputs.items()})
        return loss.one(logits[0], labels, inputs | others)

    return vmap(grad(one), in_dims=(None, 0, 0, 0))(theta, batch.inputs, batch.labels, batch.others)


@torch.enable_grad()
def batch_gradient(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor, at_once: int | None = None
) -> torch.Tensor:
    """The gradient `(p,)` of the weighted sum of the examples' losses, with so many rows at once, by default all."""
    leaf = theta.detach().clone().requires_grad_()
    leaf.grad = torch.zeros_like(theta)
    for own, part in parts_of(objective, batch, at_once or len(batch)):
        (objective.losses_in_chunks(leaf, part) @ weights[own]).backward()
    return leaf.grad


def gauss_newton_factors(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor, rows_at_once: int
) -> Iterator[torch.Tensor]:
    """
    Rows `F (q, p)`, in chunks, with `F^T F` the Gauss-Newton matrix of the weighted sum of the losses.

    With z the logits of an example, a its weight and `d^2 l / d z^2 = sum_r e_r u_r u_r^T`, it has a row
    `sqrt(a e_r) u_r^T dz/dtheta` for each r. Rows whose `a e_r` are the smallest 0.1 % of their sum are left out: for
    a model that is sure of most examples few remain.
    """
    examples, cotangents = _logit_factors(objective, theta, batch, weights)

    def one(inputs: dict[str, torch.Tensor], cotangent: torch.Tensor) -> torch.Tensor:
        def single(theta: torch.Tensor) -> torch.Tensor:
            return objective.logits(theta, {name: value.unsqueeze(0) for name, value in inputs.items()})[0].flatten()

        return vjp(single, theta)[1](cotangent)[0]

    for part in torch.arange(len(examples)).split(rows_at_once):
        inputs = {name: value[examples[part]] for name, value in batch.inputs.items()}
        yield vmap(one)(inputs, cotangents[part])


@torch.no_grad()
def _logit_factors(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The example `(q,)` and the cotangent of the logits `(q, C)` of each factor that counts."""
    logits = objective.logits(theta, batch.inputs)
    width = logits[0].numel()
    curvature = objective.loss(batch).logit_hessians(logits, batch)
    values, vectors = torch.linalg.eigh(curvature * weights[:, None, None])
    values = values.clamp(min=0).flatten()
    order = values.argsort(descending=True)
    covered = values[order].cumsum(0)
    chosen = order[: int((covered < (1 - TRACE_TOLERANCE) * covered[-1]).sum()) + 1]
    roots = vectors.transpose(1, 2).reshape(-1, width) * values.sqrt()[:, None]
    return chosen // width, roots[chosen]
