"""Which tokens of a row acted on a query: its effect, as a sum over its labelled tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.func import jvp

from hf_prune.influence.loss_queries import counted_tokens
from hf_prune.influence.row_slopes import RowSlopes
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows


def row_parts(
    objective: Objective, rows: Rows, slopes: Iterable[RowSlopes], wanted: Sequence[np.ndarray]
) -> list[dict[int, np.ndarray]]:
    """
    For each query and each of its `wanted` rows what each labelled token's own gradient does.

    One forward-mode pass along a query's cotangent moves all logits of a row; the product of each position's move and
    the slope of the loss there is that token's part.

    Args:
        slopes (`Iterable[RowSlopes]`): the parts that the rows' effects are sums of.
        wanted (`Sequence[np.ndarray]`): the rows of each query.

    Returns:
        `list[dict[int, np.ndarray]]`: float64 of shape `(tokens,)`.
    """
    found: list[dict[int, np.ndarray]] = [{} for _ in wanted]
    for place in slopes:
        for query in place.queries:
            own = np.flatnonzero(np.isin(place.rows, wanted[query]))
            if not len(own):
                continue
            batch = rows.batch(place.rows[own].tolist())
            along = _along(objective, place.theta, batch, place.cotangent(query))
            counted = counted_tokens(objective.loss(batch), batch)
            for number, factor, moved, there in zip(
                place.rows[own], place.factors[torch.from_numpy(own)], along, counted, strict=True
            ):
                parts = (factor * moved[there]).cpu().double().numpy()
                found[query][int(number)] = found[query].get(int(number), 0) + parts
    return found


def with_shared(parts: np.ndarray, effect: float) -> np.ndarray:
    """
    Parts whose sum is the row's effect: what no token does by its own gradient (leaving the denominator of its batch,
    and a clipping that the row decides) is shared evenly, as a denominator counts tokens alike.
    """
    return parts + (effect - parts.sum()) / max(1, len(parts))


def labelled_ids(batch: Batch, counted: torch.Tensor) -> list[list[int]]:
    """The ids of each row's labelled tokens that the loss looks at, in order."""
    found = []
    for labels, there in zip(batch.labels, counted, strict=True):
        own, count = labels[labels != IGNORED], int(there.sum())
        found.append(own[len(own) - count :].tolist())  # a loss of next tokens does not look at the first
    return found


def _along(objective: Objective, theta: torch.Tensor, batch: Batch, cotangent: torch.Tensor) -> torch.Tensor:
    """How the loss of each row changes along `cotangent (p,)` by the logits of each position, `(B, T)`."""
    logits, moved = jvp(lambda theta: objective.logits(theta, batch.inputs), (theta,), (cotangent.to(theta),))[:2]
    slopes = objective.loss(batch).logit_gradients(logits.detach(), batch)
    return (slopes * moved).sum(-1).detach()
