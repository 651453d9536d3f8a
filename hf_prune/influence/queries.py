"""What is asked about the trained model: k queries, as gradients `(k, p)` at the last parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import grad, vjp, vmap

from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows

# Training rows that stand in for held-out ones when there are none.
PROBE_ROWS = 256


@dataclass(frozen=True)
class Queries:
    """
    k random queries and, where there are held-out rows, one more: their mean loss.

    Attributes:
        k (`int`): the number of random queries.
        space (`str`): `"outputs"` (random signed sums of logits) or `"parameters"` (random projections).
        seed (`int`): of the signs or projections.
        rows (`Rows`): whose logits are asked about.
        held_out (`Rows`, *optional*): whose mean loss is asked about.
    """

    k: int
    space: str
    seed: int
    rows: Rows
    held_out: Rows | None


def probe(rows: Rows, seed: int) -> Rows:
    """Some training rows, which stand in for held-out ones."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:PROBE_ROWS]
    return rows.select(sorted(int(i) for i in chosen))


def output_queries(
    objective: Objective, theta: torch.Tensor, rows: Rows, k: int, *, batch_size: int, seed: int
) -> torch.Tensor:
    """
    The gradients of random signed sums of the held-out logits.

    Scaled so that over the k answers the L2 norm estimates the root mean square, over held-out rows, of the shift of a
    row's logit vector: `q_j = sum_e <s_je, z_e> / sqrt(k m)`, s of random signs, m rows.
    """
    total = torch.zeros(k, len(theta), dtype=theta.dtype, device=theta.device)
    for numbers, batch in rows.batches(batch_size):
        logits, vjp_fn = vjp(lambda theta, inputs=batch.inputs: objective.logits(theta, inputs), theta)[:2]
        signs = output_signs(numbers, k, tuple(logits.shape[1:]), seed).to(logits)
        counted = objective.loss(batch).counted(batch.labels)
        if counted is not None:
            signs *= counted[..., None]  # padding has logits too
        total += vmap(lambda s, vjp_fn=vjp_fn: vjp_fn(s)[0], chunk_size=16)(signs)
    return total / (k * len(rows)) ** 0.5


def output_signs(rows: Iterable[int], k: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """
    Signs `(k, B, *shape)` for the logits of held-out rows.

    Those of a row and position depend on their numbers and the seed alone, however far the batch is padded.
    """
    size = (shape[0], k, *shape[1:])
    draws = [np.random.default_rng([seed, int(row)]).integers(0, 2, size, dtype=np.int8) for row in rows]
    return torch.from_numpy(np.stack(draws)).movedim(2, 0) * 2 - 1


def parameter_queries(theta: torch.Tensor, k: int, *, seed: int) -> torch.Tensor:
    """Gaussian projections of the parameters, scaled so that the L2 norm of the k answers estimates the shift's."""
    generator = torch.Generator().manual_seed(seed)
    # One at a time, as the sketched engine draws them: torch's draws depend on how many are asked for at once.
    draws = [torch.randn(len(theta), generator=generator, dtype=torch.float32) for _ in range(k)]
    return torch.stack(draws).to(theta) / k**0.5


def loss_query(objective: Objective, theta: torch.Tensor, rows: Rows, *, batch_size: int) -> torch.Tensor:
    """The gradient of the mean loss of the held-out rows, `(1, p)`."""
    total, items = torch.zeros_like(theta), 0.0
    for _, batch in rows.batches(batch_size):
        counts = objective.items(batch)
        total += grad(lambda theta, b=batch, n=counts: objective.losses(theta, b) @ n)(theta)
        items += float(counts.sum())
    return (total / items)[None]
