"""The k questions asked of the trained model, sketched: what `directions` does, without vectors of length p."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.func import grad, vmap

from hf_prune.influence.queries import output_signs
from hf_prune.influence.sketch.window_pass import WindowPass
from hf_prune.model.objective import Batch
from hf_prune.model.rows import Rows

# Pulls over held-out rows: a row gets as many as it has logits, or random sums of them where these are more.
MOST_PULLS = 1024
SUMS_PER_ROW = 2
Scales = Sequence[torch.Tensor | None]


def output_questions(
    work: WindowPass, theta: torch.Tensor, scales: Scales, rows: Rows, k: int, *, batch_size: int, seed: int
) -> torch.Tensor:
    """
    Random signed sums of the held-out logits `(k, d)`, and below them the gradient of the mean held-out loss.

    The sums are those of [`output_directions`], unless a row has so many logits that random sums of them stand for
    them (with a scale that keeps the meaning of the answers' L2 norm).
    """
    total = torch.zeros(k + 1, work.projection.width, device=work.objective.device)
    items = 0.0
    for numbers, batch in _batches(rows, batch_size):
        with work.pulls.forward(theta, batch.inputs) as forward:
            logits = forward.logits
            counted = work.objective.loss(batch).counted(batch.labels)
            mask = torch.ones_like(logits) if counted is None else counted[..., None].expand_as(logits).to(logits)
            counts = work.objective.items(batch)
            width = logits[0].numel()
            if width <= SUMS_PER_ROW or width * len(rows) <= MOST_PULLS:
                signs = output_signs(numbers, k, tuple(logits.shape[1:]), seed).to(logits)
                slopes = residuals(work, batch, logits).flatten(1)
                for place in range(width):
                    basis = torch.zeros_like(logits).flatten(1)
                    basis[:, place] = 1
                    rows_of = forward.pull(basis.view_as(logits) * mask, scales)[0]
                    total[:k] += signs.flatten(2)[:, :, place] @ rows_of
                    total[k] += (counts * slopes[:, place]) @ rows_of
            else:
                for draw in range(SUMS_PER_ROW):
                    own = output_signs(numbers, 1, tuple(logits.shape[1:]), seed + 1 + draw)[0].to(logits)
                    rows_of = forward.pull(own * mask, scales)[0]
                    sums = output_signs(numbers, k, (1,), seed + 101 + draw).to(logits)[:, :, 0]
                    total[:k] += sums @ rows_of / SUMS_PER_ROW**0.5
                total[k] += counts @ forward.pull(residuals(work, batch, logits), scales)[0]
            items += float(counts.sum())
    total[:k] /= (k * len(rows)) ** 0.5
    total[k] /= items
    return total


def parameter_questions(
    work: WindowPass, theta: torch.Tensor, scales: Scales, rows: Rows | None, k: int, *, batch_size: int, seed: int
) -> torch.Tensor:
    """Gaussian projections of the parameters `(k, d)`, and below them the gradient of the mean held-out loss."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(k):
        draw = torch.randn(1, len(theta), generator=generator).to(theta) / k**0.5
        parts.append(work.projection.sketch(draw, scales))
    total = torch.zeros(1, work.projection.width, device=work.objective.device)
    items = 0.0
    for _, batch in _batches(rows, batch_size) if rows is not None else ():
        with work.pulls.forward(theta, batch.inputs) as forward:
            counts = work.objective.items(batch)
            total += counts @ forward.pull(residuals(work, batch, forward.logits), scales)[0]
            items += float(counts.sum())
    return torch.cat([*parts, total / max(items, 1.0)])


def logit_questions(
    work: WindowPass, theta: torch.Tensor, scales: Scales, rows: Rows, batch_size: int
) -> torch.Tensor:
    """Every logit of every row, `(m, C, d)`: to predict outputs themselves."""
    found = []
    for _, batch in _batches(rows, batch_size):
        with work.pulls.forward(theta, batch.inputs) as forward:
            places = []
            for place in range(forward.logits[0].numel()):
                basis = torch.zeros_like(forward.logits).flatten(1)
                basis[:, place] = 1
                places.append(forward.pull(basis.view_as(forward.logits), scales)[0])
            found.append(torch.stack(places, 1))
    return torch.cat(found)


def residuals(work: WindowPass, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """The gradient of each example's loss in its own logits, of the logits' shape."""
    loss = work.objective.loss(batch)

    def one(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss.losses(z.unsqueeze(0), y.unsqueeze(0))[0]

    return vmap(grad(one))(logits, batch.labels)


def _batches(rows: Rows, batch_size: int) -> Iterator[tuple[range, Batch]]:
    for start in range(0, len(rows), batch_size):
        numbers = range(start, min(start + batch_size, len(rows)))
        yield numbers, rows.batch(numbers)
