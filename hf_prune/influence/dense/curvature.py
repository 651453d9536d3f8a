"""What a step's curvature does to a cotangent, in four grades of faithfulness and cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.func import grad, jvp, vjp, vmap

from hf_prune.model.batch import Batch
from hf_prune.model.losses import FACTORED_LOGITS
from hf_prune.model.objective import Objective
from hf_prune.model.per_example import example_gradients, gauss_newton_factors

# A cotangent's way through the network takes about this many vectors of the parameters' length.
VECTORS_PER_DIRECTION = 8


@dataclass(frozen=True)
class StepWork:
    """
    What one step gives the sweep.

    Attributes:
        dots (`torch.Tensor`, `(k, B)`, *optional*): `<c_j, grad l_i>`, not yet weighted.
        along (`torch.Tensor`, `(3, B)`, *optional*): what [`leave_one_out`] needs of the batch gradient.
        curved (`torch.Tensor`, `(k, p)`, *optional*): the curvature of the step's objective times each cotangent.
    """

    dots: torch.Tensor | None
    along: torch.Tensor | None
    curved: torch.Tensor | None


@dataclass(frozen=True)
class Parts:
    """
    A batch gradient by its denominators.

    Attributes:
        gradients (`torch.Tensor`, `(G, p)`): the part of each group of visits.
        groups (`torch.Tensor`, `(B,)`): the group of each visit.
    """

    gradients: torch.Tensor
    groups: torch.Tensor

    @property
    def whole(self) -> torch.Tensor:
        return self.gradients.sum(0)

    def own(self, G: torch.Tensor, rows: slice) -> torch.Tensor:
        """The product `(b,)` of each of the gradients `G (b, p)` of some visits with its group's part."""
        if len(self.gradients) == 1:
            return G @ self.gradients[0]
        return (G * self.gradients[self.groups[rows]]).sum(1)


def step_work(
    objective: Objective,
    theta: torch.Tensor,
    batch: Batch,
    weights: torch.Tensor,
    C: torch.Tensor,
    kind: str,
    *,
    dots: bool,
    parts: Parts | None = None,
    budget: int,
) -> StepWork:
    """
    One pass over a step's examples with the cotangents `C (k, p)`.

    Args:
        weights (`torch.Tensor`, `(B,)`): weight of each example's loss in the step's objective.
        kind (`str`): `"none"`, `"fisher"` (outer products of the examples' gradients), `"gauss-newton"` or `"exact"`.
        dots (`bool`): whether the examples' own dot products are asked for.
        parts (`Parts`, *optional*): the batch gradient, for the terms of clipping.
        budget (`int`): bytes that one chunk's gradients may take.
    """
    work = StepWork(None, None, None)
    if dots or kind == "fisher":
        work = _by_examples(objective, theta, batch, weights, C, kind == "fisher", parts, budget)
    if kind in ("none", "fisher"):
        return work
    if kind == "exact":
        curved = hessian_products(objective, theta, batch, weights, C, budget)
    elif objective.width(batch) <= FACTORED_LOGITS:
        curved = factored_products(objective, theta, batch, weights, C, budget)
    else:
        curved = gauss_newton_products(objective, theta, batch, weights, C, budget)
    return StepWork(work.dots, work.along, curved)


def _by_examples(
    objective: Objective,
    theta: torch.Tensor,
    batch: Batch,
    weights: torch.Tensor,
    C: torch.Tensor,
    fisher: bool,
    parts: Parts | None,
    budget: int,
) -> StepWork:
    """Dot products, and the empirical Fisher matrix times `C`, from one set of per-example gradients."""
    curved = torch.zeros_like(C) if fisher else None
    dots, along = [], []
    for rows in _chunks(len(batch), theta.numel() * theta.element_size(), budget):
        G = example_gradients(objective, theta, batch.part(rows))
        dots.append(C @ G.T)
        if curved is not None:
            curved.addmm_(dots[-1] * weights[rows], G)
        if parts is not None:
            along.append(torch.stack([G @ parts.whole, G.square().sum(1), parts.own(G, rows)]))
    return StepWork(torch.cat(dots, 1), torch.cat(along, 1) if along else None, curved)


def hessian_products(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor, C: torch.Tensor, budget: int
) -> torch.Tensor:
    """The Hessian of the step's objective times each row of `C`: reverse over reverse, because it is symmetric."""

    def objective_of(theta: torch.Tensor) -> torch.Tensor:
        return objective.losses(theta, batch) @ weights

    vjp_fn = vjp(grad(objective_of), theta)[1]
    size = _direction_bytes(objective, theta, batch)
    return torch.cat([vmap(lambda c: vjp_fn(c)[0])(C[rows]) for rows in _chunks(len(C), size, budget)])


def factored_products(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor, C: torch.Tensor, budget: int
) -> torch.Tensor:
    """The Gauss-Newton matrix of the step's objective times each row of `C`, by its factors: two matmuls."""
    curved = torch.zeros_like(C)
    at_once = max(1, budget // (2 * theta.numel() * theta.element_size()))
    for F in gauss_newton_factors(objective, theta, batch, weights, at_once):
        curved.addmm_(C @ F.T, F)
    return curved


def gauss_newton_products(
    objective: Objective, theta: torch.Tensor, batch: Batch, weights: torch.Tensor, C: torch.Tensor, budget: int
) -> torch.Tensor:
    """The same, one query after the other through the logits of the batch: for many logits an example."""
    loss = objective.loss(batch)

    def slope(logits: torch.Tensor) -> torch.Tensor:
        return grad(lambda z: loss.of(z, batch) @ weights)(logits)

    def forward(theta: torch.Tensor) -> torch.Tensor:
        return objective.logits(theta, batch.inputs)

    logits, vjp_fn = vjp(forward, theta)[:2]

    def one(c: torch.Tensor) -> torch.Tensor:
        moved = jvp(forward, (theta,), (c,))[1]
        return vjp_fn(jvp(slope, (logits.detach(),), (moved,))[1])[0]

    size = _direction_bytes(objective, theta, batch)
    return torch.cat([vmap(one)(C[rows]) for rows in _chunks(len(C), size, budget)])


def _direction_bytes(objective: Objective, theta: torch.Tensor, batch: Batch) -> int:
    """What one cotangent's way through the network takes: vectors of the parameters' length and of the logits'."""
    return VECTORS_PER_DIRECTION * theta.element_size() * max(theta.numel(), len(batch) * objective.width(batch))


def _chunks(total: int, bytes_each: int, budget: int) -> Iterator[slice]:
    size = max(1, min(total, budget // max(1, bytes_each)))
    for start in range(0, total, size):
        yield slice(start, start + size)
