"""What a step's curvature does to a cotangent, in four grades of faithfulness and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.func import grad, jvp, vjp, vmap

from hf_prune.influence.gradients import example_gradients, gradients_and_factors
from hf_prune.influence.objective import Batch, Objective

KINDS = ("none", "fisher", "gauss-newton", "exact")


@dataclass(frozen=True)
class StepWork:
    """
    What one step gives the sweep.

    Attributes:
        dots (`torch.Tensor`, `(k, B)`): `<c_j, grad l_i>`, not yet weighted.
        along (`torch.Tensor`, `(2, B)`, *optional*): `<g, grad l_i>` and `|grad l_i|^2`, when the batch gradient g was
            asked about.
        curved (`torch.Tensor`, `(k, p)`): the curvature matrix of the step's objective times each cotangent.
    """

    dots: torch.Tensor
    along: torch.Tensor | None
    curved: torch.Tensor | None


def step_work(
    objective: Objective,
    theta: torch.Tensor,
    batch: Batch,
    weights: torch.Tensor,
    C: torch.Tensor,
    kind: str,
    *,
    gradient: torch.Tensor | None = None,
    budget: int,
) -> StepWork:
    """
    One pass over a step's examples with the cotangents `C (k, p)`.

    Args:
        weights (`torch.Tensor`, `(B,)`): weight of each example's loss in the step's objective.
        kind (`str`): `"none"`, `"fisher"` (outer products of the examples' gradients), `"gauss-newton"` or `"exact"`.
        gradient (`torch.Tensor`, `(p,)`, *optional*): the batch gradient, for the terms of clipping.
        budget (`int`): bytes that one chunk's gradients may take.
    """
    k = len(C)
    width = objective.width(batch)
    by_factors = kind == "gauss-newton" and width <= max(2, k // 2)
    curved = torch.zeros_like(C) if kind == "fisher" or by_factors else None
    dots, along = [], []
    for rows in _chunks(len(batch), (width if by_factors else 1) * theta.numel() * theta.element_size(), budget):
        part, a = batch.part(rows), weights[rows]
        if by_factors:
            G, factors = gradients_and_factors(objective, theta, part)
            flat = (factors * a.sqrt()[:, None, None]).flatten(0, 1)
            curved.addmm_(C @ flat.T, flat)  # type: ignore[union-attr]
        else:
            G = example_gradients(objective, theta, part)
        dots.append(C @ G.T)
        if kind == "fisher":
            curved.addmm_(dots[-1] * a, G)  # type: ignore[union-attr]
        if gradient is not None:
            along.append(torch.stack([G @ gradient, G.square().sum(1)]))
    if kind == "exact":
        curved = hessian_products(objective, theta, batch, weights, C, budget)
    elif kind == "gauss-newton" and not by_factors:
        curved = gauss_newton_products(objective, theta, batch, weights, C, budget)
    return StepWork(torch.cat(dots, 1), torch.cat(along, 1) if along else None, curved)


def hessian_products(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor, C: torch.Tensor, budget: int
) -> torch.Tensor:
    """The Hessian of the step's objective times each row of `C`: reverse over reverse mode, for it is symmetric."""

    def objective_of(theta: torch.Tensor) -> torch.Tensor:
        return objective.losses(theta, batch) @ weights

    pull = vjp(grad(objective_of), theta)[1]
    parts = [
        vmap(lambda c: pull(c)[0])(C[rows]) for rows in _chunks(len(C), 8 * theta.numel() * C.element_size(), budget)
    ]
    return torch.cat(parts)


def gauss_newton_products(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor, C: torch.Tensor, budget: int
) -> torch.Tensor:
    """The Gauss-Newton matrix of the step's objective times each row of `C`, through the logits of the whole batch."""
    loss = objective.loss(batch)

    def slope(logits: torch.Tensor) -> torch.Tensor:
        return grad(lambda z: loss.losses(z, batch.labels) @ weights)(logits)

    def forward(theta: torch.Tensor) -> torch.Tensor:
        return objective.logits(theta, batch.inputs)

    logits, pull = vjp(forward, theta)[:2]

    def one(c: torch.Tensor) -> torch.Tensor:
        moved = jvp(forward, (theta,), (c,))[1]
        return pull(jvp(slope, (logits.detach(),), (moved,))[1])[0]

    parts = [vmap(one)(C[rows]) for rows in _chunks(len(C), 8 * theta.numel() * C.element_size(), budget)]
    return torch.cat(parts)


def _chunks(total: int, bytes_each: int, budget: int) -> Iterator[slice]:
    size = max(1, min(total, budget // max(1, bytes_each)))
    for start in range(0, total, size):
        yield slice(start, start + size)
