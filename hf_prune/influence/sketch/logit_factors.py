"""The loss's gradient and Hessian in an example's logits, as few cotangents that together hold both."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_prune.influence.sketch.draw import draw
from hf_prune.model.batch import Batch
from hf_prune.model.losses import FACTORED_LOGITS, ExampleLoss

# Share of the batch's curvature in the logits that may be left out, and the most factors an example gets.
TRACE_TOLERANCE = 0.05
MOST_FACTORS = 3
# Share of a gradient or a trace that may lie outside of the one cotangent that stands for both.
PARALLEL = 1e-3


@dataclass(frozen=True)
class LogitFactor:
    """
    One cotangent `u_i` for each example's logits, and what its VJP `f_i = J_i^T u_i` stands for.

    Attributes:
        cotangents (`torch.Tensor`, shape of the logits): u.
        gradient (`torch.Tensor`, `(B,)`): coefficients g; the loss's gradient is `sum over factors of g f`.
        curvature (`torch.Tensor`, `(B,)`): coefficients c; the Gauss-Newton matrix is `sum over factors of c f f^T`.
    """

    cotangents: torch.Tensor
    gradient: torch.Tensor
    curvature: torch.Tensor


def random_draws(batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """Numbers in [0, 1) for all that is drawn for each example, `(B, tokens or logits)`."""
    return torch.rand(len(batch), max(FACTORED_LOGITS, batch.labels[0].numel()), generator=generator)


def logit_factors(
    loss: ExampleLoss, logits: torch.Tensor, batch: Batch, draws: torch.Tensor, *, curved: bool = True
) -> list[LogitFactor]:
    """
    The factors of a batch's losses.

    Args:
        draws (`torch.Tensor`): [`random_draws`] of the examples, on the CPU.
        curved (`bool`, *optional*, defaults to `True`): whether the curvature is asked for, or the gradient alone.

    With two classes or one output a single cotangent holds both the gradient and the curvature. With some classes the
    largest eigenvectors of each Hessian are added, until they hold 95 % of the batch's trace; where three do not, two,
    and a random sum of all others, whose `E[f f^T]` is theirs. For token losses with many logits labels are drawn from
    the model: `E[f f^T]` is the Gauss-Newton matrix (arXiv 1412.1193).
    """
    residual = loss.logit_gradients(logits, batch)
    one, nothing = torch.ones_like(logits.flatten(1)[:, 0]), torch.zeros_like(logits.flatten(1)[:, 0])
    if loss.is_output:
        return [LogitFactor(residual, one, one)]  # the gradient's outer product
    if not curved and logits[0].numel() > 2:  # of two at most the same cotangent holds both: it is rounded alike
        return [LogitFactor(residual, one, nothing)]
    if logits[0].numel() <= FACTORED_LOGITS:
        values, vectors = _eigen(loss, logits, batch)
        first = vectors[:, :, 0]
        flat = residual.flatten(1)
        along = (first * flat).sum(1)
        total, kept = values.sum(), values[:, 0].sum()
        apart = (flat - along[:, None] * first).norm(dim=1)
        if apart.norm() <= PARALLEL * flat.norm() and kept >= (1 - PARALLEL) * total:
            return [LogitFactor(first.view_as(logits), along, values[:, 0])]
        if not curved:
            return [LogitFactor(residual, one, nothing)]
        held = values.cumsum(1).sum(0) / total
        enough = int((held < 1 - TRACE_TOLERANCE).sum()) + 1
        whole = enough if enough <= MOST_FACTORS else MOST_FACTORS - 1
        factors = [LogitFactor(residual, one, nothing)]
        factors += [
            LogitFactor(vectors[:, :, rank].view_as(logits), nothing, values[:, rank]) for rank in range(whole)
        ]
        if whole < enough:
            rest = _random_sum(values[:, whole:], vectors[:, :, whole:], draws)
            factors.append(LogitFactor(rest.view_as(logits), nothing, one))
        return factors
    counted = loss.counted(batch.labels)
    if counted is None:
        return [LogitFactor(residual, one, one)]  # of a wide loss of unknown form the gradient's outer product is left
    return [LogitFactor(residual, one, nothing), LogitFactor(_drawn(logits, counted, draws), nothing, one)]


def _eigen(loss: ExampleLoss, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues `(B, C)`, largest first, and eigenvectors `(B, C, C)` (in columns) of the losses' Hessians."""
    values, vectors = torch.linalg.eigh(loss.logit_hessians(logits, batch))
    return values.clamp(min=0).flip(1), vectors.flip(2)


def _random_sum(values: torch.Tensor, vectors: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """`sum_r +-sqrt(e_r) u_r` `(B, C)` with random signs: its outer product is `sum_r e_r u_r u_r^T` in the mean."""
    signs = (draws[:, : values.shape[1]] < 0.5).to(values) * 2 - 1
    return torch.einsum("bcr,br->bc", vectors, values.sqrt() * signs)


def _drawn(logits: torch.Tensor, counted: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """`(p - e_y) / sqrt(items)` at each counted token, for a label y that the model draws."""
    errors = logits.float().softmax(-1)
    labels = draw(errors.flatten(0, -2), draws[:, : logits.shape[1]].flatten().to(logits.device))
    errors.flatten(0, -2).scatter_add_(1, labels[:, None], -torch.ones_like(errors[..., 0].flatten()[:, None]))
    items = counted.sum(1).clamp(min=1).to(errors)
    return errors * counted[..., None] / items.sqrt()[:, None, None]
