"""Queries about single examples: the loss of each of some rows, or of each of their labelled tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.func import vjp, vmap

from hf_prune.errors import UnsupportedError
from hf_prune.model.batch import Batch
from hf_prune.model.losses import ExampleLoss
from hf_prune.model.objective import Objective
from hf_prune.model.per_example import example_gradients
from hf_prune.model.rows import Rows

# Cotangents of one example's logits at once.
AT_ONCE = 16


@dataclass(frozen=True)
class LossQueries:
    """
    One query for each row, its loss, or one for each labelled token of it, that token's own loss.

    Attributes:
        rows (`Rows`): what is asked about.
        by_tokens (`bool`): whether tokens are asked about one by one; those of a row follow each other.
    """

    rows: Rows
    by_tokens: bool = False


def counted_tokens(loss: ExampleLoss, batch: Batch) -> torch.Tensor:
    """
    Which positions' logits the loss is taken at, `(B, T)`.

    Raises:
        `UnsupportedError`: for a loss that is no mean over tokens, as far as is known.
    """
    counted = loss.counted(batch.labels)
    if counted is None:
        raise UnsupportedError(
            "The loss of this run is not known token by token, as a classifier's or one given as loss= is not: leave "
            "out tokens=."
        )
    return counted


def token_slopes(loss: ExampleLoss, logits: torch.Tensor, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """
    For each place among the labelled tokens the gradient of that token's own loss in the logits, and which examples
    `(B,)` have so many tokens.
    """
    counted = counted_tokens(loss, batch)
    slopes = loss.logit_gradients(logits, batch)  # of the mean over an example's tokens
    places, items = counted.cumsum(1) * counted, counted.sum(1, keepdim=True)
    for place in range(1, int(items.max()) + 1):
        chosen = places == place
        yield slopes * (chosen * items)[..., None], chosen.any(1)


def loss_queries(objective: Objective, theta: torch.Tensor, queries: LossQueries, *, batch_size: int) -> torch.Tensor:
    """The gradients of the queries, `(k, p)`."""
    if queries.by_tokens:
        found = [_of_tokens(objective, theta, batch) for _, batch in queries.rows.batches(1)]
    else:
        found = [example_gradients(objective, theta, batch) for _, batch in queries.rows.batches(batch_size)]
    return torch.cat(found)


def _of_tokens(objective: Objective, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Those of one example's tokens."""
    logits, vjp_fn = vjp(lambda theta: objective.logits(theta, batch.inputs), theta)[:2]
    slopes = [slope for slope, _ in token_slopes(objective.loss(batch), logits.detach(), batch)]
    return vmap(lambda slope: vjp_fn(slope)[0], chunk_size=AT_ONCE)(torch.stack(slopes))
