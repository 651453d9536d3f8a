"""The k queries, sketched: what [`output_queries`] and its like compute, without vectors of length p."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from hf_prune.influence.loss_queries import LossQueries, token_slopes
from hf_prune.influence.queries import output_signs
from hf_prune.influence.sketch.forward_pass import ForwardPass
from hf_prune.influence.sketch.scales import Scales
from hf_prune.influence.sketch.token_forward_pass import TokenForwardPass
from hf_prune.influence.sketch.token_loss import GROUPS, VocabularySigns
from hf_prune.influence.sketch.window_pass import WindowPass
from hf_prune.model.batch import Batch
from hf_prune.model.losses import ExampleLoss
from hf_prune.model.micro_batches import parts_of_rows
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
    for numbers, batch in parts_of_rows(window.objective, rows, batch_size):
        counts = window.objective.items(batch)
        with window.per_example.forward(theta, batch.inputs) as forward:
            asked = _OutputQueries(window.objective.loss(batch), numbers, batch, counts, k, seed)
            if isinstance(forward, TokenForwardPass) and asked.counted is not None:
                total += asked.of_tokens(forward, scales)
            elif (width := forward.logits[0].numel()) <= SUMS_PER_ROW or width * len(rows) <= MOST_VJPS:
                total += asked.of_each(forward, scales)
            else:
                total += asked.of_sums(forward, scales)
        items += float(counts.sum())
    total[:k] /= (k * len(rows)) ** 0.5
    total[k] /= items
    return total


@dataclass(frozen=True)
class _OutputQueries:
    """What is asked of one batch, before it is divided by the numbers of rows and items."""

    loss: ExampleLoss
    numbers: torch.Tensor
    batch: Batch
    counts: torch.Tensor
    k: int
    seed: int

    @cached_property
    def counted(self) -> torch.Tensor | None:
        return self.loss.counted(self.batch.labels)

    def of_each(self, forward: ForwardPass, scales: Scales) -> torch.Tensor:
        """By every single logit's gradient."""
        logits, total = forward.logits, []
        slopes = self.loss.logit_gradients(logits, self.batch).flatten(1)
        signs = output_signs(self.numbers, self.k, tuple(logits.shape[1:]), self.seed).to(logits).flatten(2)
        for place in range(logits[0].numel()):
            basis = torch.zeros_like(logits).flatten(1)
            basis[:, place] = 1
            sketches = forward.vjp(self._masked(basis.view_as(logits)), scales.factors)
            own = torch.cat([signs[:, :, place], (self.counts * slopes[:, place])[None]])
            total.append(own @ sketches)
        return torch.stack(total).sum(0)

    def of_sums(self, forward: ForwardPass, scales: Scales) -> torch.Tensor:
        """By random sums of all logits."""
        shape, draws = tuple(forward.logits.shape[1:]), []
        for draw in range(SUMS_PER_ROW):
            own = output_signs(self.numbers, 1, shape, self.seed + 1 + draw)[0].to(forward.logits)
            draws.append(forward.vjp(self._masked(own), scales.factors))
        return self._summed(forward, scales, draws)

    def of_tokens(self, forward: TokenForwardPass, scales: Scales) -> torch.Tensor:
        """The same where a token has the logits of a vocabulary, whose signs are made of few."""
        assert self.counted is not None
        shape, draws = (self.counted.shape[1], GROUPS), []
        for draw in range(SUMS_PER_ROW):
            own = output_signs(self.numbers, 1, shape, self.seed + 1 + draw)[0].to(forward.hidden)
            vocabulary = VocabularySigns.of(forward.vocabulary, self.seed + 1 + draw, own.device)
            draws.append(forward.sum_sketches(vocabulary, own, self.counted, scales.factors))
        return self._summed(forward, scales, draws)

    def _summed(self, forward: ForwardPass, scales: Scales, draws: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros(self.k + 1, draws[0].shape[1], device=draws[0].device)
        for draw, sketches in enumerate(draws):
            signs = output_signs(self.numbers, self.k, (1,), self.seed + 101 + draw).to(sketches)[:, :, 0]
            total[:-1] += signs @ sketches / SUMS_PER_ROW**0.5
        total[-1] = self.counts @ forward.loss_sketches(self.loss, self.batch, scales.factors)[0]
        return total

    def _masked(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Without the logits that the loss does not look at."""
        return cotangents if self.counted is None else cotangents * self.counted[..., None]


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
    for _, batch in parts_of_rows(window.objective, rows, batch_size):
        with window.per_example.forward(theta, batch.inputs) as forward:
            counts = window.objective.items(batch)
            total += counts @ forward.loss_sketches(window.objective.loss(batch), batch, scales.factors)[0]
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
                found.append(forward.loss_sketches(loss, batch, scales.factors)[0])
                continue
            sketches, rows = [], []
            for slope, there in token_slopes(loss, forward.logits, batch):
                sketches.append(forward.vjp(slope, scales.factors)[there])
                rows.append(there.nonzero()[:, 0])
        found.append(torch.cat(sketches)[torch.cat(rows).argsort(stable=True)])
    return torch.cat(found)
