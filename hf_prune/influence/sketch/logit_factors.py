"""What to pull back of an example's logits: its loss's gradient, and factors of the loss's Hessian in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.func import grad, hessian, vmap

from hf_prune.model.losses import ExampleLoss

# Share of the batch's curvature in the logits that may be left out, and the most factors an example gets.
TRACE_TOLERANCE = 0.05
MOST_FACTORS = 3
# Up to so many logits an example, its Hessian is factored; above, labels are drawn from the model.
FACTORED_LOGITS = 64
PARALLEL = 1e-3


@dataclass(frozen=True)
class Round:
    """
    One cotangent `u_i` for each example's logits, and what its pull `f_i = J_i^T u_i` stands for.

    Attributes:
        cotangents (`torch.Tensor`, shape of the logits): u.
        slopes (`torch.Tensor`, `(B,)`): the example's loss has the gradient `sum over rounds of slope f`.
        factors (`torch.Tensor`, `(B,)`): its Gauss-Newton matrix is `sum over rounds of factor f f^T`.
    """

    cotangents: torch.Tensor
    slopes: torch.Tensor
    factors: torch.Tensor


def loss_rounds(
    loss: ExampleLoss, logits: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> list[Round]:
    """
    The rounds of a batch.

    With two classes or one output a single pull holds both the gradient and the curvature. With some classes the
    largest eigenvectors of each Hessian are added, until they hold 95 % of the batch's trace; where three do not, two,
    and a random sum of all others, whose `E[f f^T]` is theirs. For token losses with many logits labels are drawn from
    the model: `E[f f^T]` is the Gauss-Newton matrix (arXiv 1412.1193).
    """
    residual = vmap(grad(lambda z, y: loss.losses(z.unsqueeze(0), y.unsqueeze(0))[0]))(logits, labels)
    one, nothing = torch.ones_like(logits.flatten(1)[:, 0]), torch.zeros_like(logits.flatten(1)[:, 0])
    if logits[0].numel() <= FACTORED_LOGITS:
        values, vectors = _eigen(loss, logits, labels)
        first = vectors[:, :, 0]
        flat = residual.flatten(1)
        along = (first * flat).sum(1)
        total, kept = values.sum(), values[:, 0].sum()
        apart = (flat - along[:, None] * first).norm(dim=1)
        if apart.norm() <= PARALLEL * flat.norm() and kept >= (1 - PARALLEL) * total:
            return [Round(first.view_as(logits), along, values[:, 0])]
        held = values.cumsum(1).sum(0) / total
        enough = int((held < 1 - TRACE_TOLERANCE).sum()) + 1
        whole = enough if enough <= MOST_FACTORS else MOST_FACTORS - 1
        rounds = [Round(residual, one, nothing)]
        rounds += [Round(vectors[:, :, rank].view_as(logits), nothing, values[:, rank]) for rank in range(whole)]
        if whole < enough:
            rest = _random_sum(values[:, whole:], vectors[:, :, whole:], generator)
            rounds.append(Round(rest.view_as(logits), nothing, one))
        return rounds
    counted = loss.counted(labels)
    if counted is None:
        return [Round(residual, one, one)]  # of a wide loss of unknown form the gradient's outer product is left
    return [Round(residual, one, nothing), Round(_drawn(logits, counted, generator), nothing, one)]


def _eigen(loss: ExampleLoss, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues `(B, C)`, largest first, and eigenvectors `(B, C, C)` (in columns) of the losses' Hessians."""
    values, vectors = torch.linalg.eigh(logit_hessians(loss, logits, labels))
    return values.clamp(min=0).flip(1), vectors.flip(2)


def _random_sum(values: torch.Tensor, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`sum_r +-sqrt(e_r) u_r` `(B, C)` with random signs: its outer product is `sum_r e_r u_r u_r^T` in the mean."""
    signs = torch.randint(0, 2, values.shape, generator=generator).to(values) * 2 - 1
    return torch.einsum("bcr,br->bc", vectors, values.sqrt() * signs)


def logit_hessians(loss: ExampleLoss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The Hessian of each example's loss in its logits, `(B, C, C)`."""
    width = logits[0].numel()

    def one(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss.losses(z.unsqueeze(0), y.unsqueeze(0))[0]

    return vmap(hessian(one))(logits, labels).reshape(len(logits), width, width)


def _drawn(logits: torch.Tensor, counted: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`(p - e_y) / sqrt(items)` at each counted token, for a label y that the model draws."""
    chances = logits.softmax(-1)
    drawn = torch.multinomial(chances.flatten(0, -2).cpu(), 1, generator=generator).to(logits.device)
    errors = chances.flatten(0, -2).scatter_add(1, drawn, -torch.ones_like(drawn, dtype=logits.dtype))
    items = counted.sum(1).clamp(min=1).to(logits)
    return errors.view_as(logits) * counted[..., None] / items.sqrt()[:, None, None]
