"""The k queries, sketched: what [`output_queries`] and its like compute, without vectors of length p."""

from __future__ import annotations

import torch

from hf_prune.influence.loss_queries import LossQueries, token_slopes
from hf_prune.influence.queries import output_signs
from hf_prune.influence.sketch.scales import Scales
from hf_prune.influence.sketch.window_pass import WindowPass
from hf_prune.model.rows import Rows

# VJPs over held-out rows: a row gets as many as it has logits, or random sums of them where these are more.
MOST_VJPS = 1024
SUMS_PER_ROW = 2


def output_query_sketches(
    window: WindowPass, theta: torch.Tensor, scales: Scales, rows: Rows, k: int, *, batch_size: int, seed: int
) -> torch.Tensor:
    """
    Random signed sums of the held-out logits `(k, d)`, and below them the gradient of the mean held-out loss.

    The sums are those of [`output_queries`], unless a row has so many logits that random sums of them stand for
    them (with a scale that keeps the meaning of the answers' L2 norm).
    """
    total = torch.zeros(k + 1, window.sketch.width, device=window.objective.device)
    items = 0.0
    for numbers, batch in rows.batches(batch_size):
        with window.per_example.forward(theta, batch.inputs) as forward:
            logits, loss = forward.logits, window.objective.loss(batch)
            counted = loss.counted(batch.labels)
            mask = torch.ones_like(logits) if counted is None else counted[..., None].expand_as(logits).to(logits)
            counts = window.objective.items(batch)
            slopes = loss.logit_gradients(logits, batch)
            width = logits[0].numel()
            if width <= SUMS_PER_ROW or width * len(rows) <= MOST_VJPS:
                signs = output_signs(numbers, k, tuple(logits.shape[1:]), seed).to(logits)
                for place in range(width):
                    basis = torch.zeros_like(logits).flatten(1)
                    basis[:, place] = 1
                    sketches = forward.vjp(basis.view_as(logits) * mask, scales.factors)
                    total[:k] += signs.flatten(2)[:, :, place] @ sketches
                    total[k] += (counts * slopes.flatten(1)[:, place]) @ sketches
            else:
                for draw in range(SUMS_PER_ROW):
                    own = output_signs(numbers, 1, tuple(logits.shape[1:]), seed + 1 + draw)[0].to(logits)
                    sketches = forward.vjp(own * mask, scales.factors)
                    sums = output_signs(numbers, k, (1,), seed + 101 + draw).to(logits)[:, :, 0]
                    total[:k] += sums @ sketches / SUMS_PER_ROW**0.5
                total[k] += counts @ forward.vjp(slopes, scales.factors)
            items += float(counts.sum())
    total[:k] /= (k * len(rows)) ** 0.5
    total[k] /= items
    return total


def parameter_query_sketches(
    window: WindowPass, theta: torch.Tensor, scales: Scales, k: int, *, seed: int
) -> torch.Tensor:
    """Gaussian projections of the parameters `(k, d)`, those of [`parameter_queries`]."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(k):
        draw = torch.randn(1, len(theta), generator=generator).to(theta) / k**0.5
        parts.append(window.sketch.sketch(draw, scales.factors))
    return torch.cat(parts)


def loss_query_sketch(
    window: WindowPass, theta: torch.Tensor, scales: Scales, rows: Rows, *, batch_size: int
) -> torch.Tensor:
    """The gradient of the mean loss of the held-out rows, `(1, d)`."""
    total = torch.zeros(1, window.sketch.width, device=window.objective.device)
    items = 0.0
    for _, batch in rows.batches(batch_size):
        with window.per_example.forward(theta, batch.inputs) as forward:
            counts = window.objective.items(batch)
            slopes = window.objective.loss(batch).logit_gradients(forward.logits, batch)
            total += counts @ forward.vjp(slopes, scales.factors)
            items += float(counts.sum())
    return total / items


def loss_query_sketches(
    window: WindowPass, theta: torch.Tensor, scales: Scales, queries: LossQueries, *, batch_size: int
) -> torch.Tensor:
    """The gradients of single rows' losses, or of their tokens', `(k, d)`: those of [`loss_queries`]."""
    found = []
    for _, batch in queries.rows.batches(batch_size):
        with window.per_example.forward(theta, batch.inputs) as forward:
            loss = window.objective.loss(batch)
            if not queries.by_tokens:
                found.append(forward.vjp(loss.logit_gradients(forward.logits, batch), scales.factors))
                continue
            sketches, rows = [], []
            for slope, there in token_slopes(loss, forward.logits, batch):
                sketches.append(forward.vjp(slope, scales.factors)[there])
                rows.append(there.nonzero()[:, 0])
        found.append(torch.cat(sketches)[torch.cat(rows).argsort(stable=True)])
    return torch.cat(found)
