"""The k questions asked of the trained model, as gradients `(k, p)` at the last parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import grad, vjp, vmap

from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows


def output_directions(
    objective: Objective, theta: torch.Tensor, rows: Rows, k: int, *, batch_size: int, seed: int
) -> torch.Tensor:
    """
    Random signed sums of the held-out logits, pulled back to the parameters.

    Scaled so that over the k answers the L2 norm estimates the root mean square, over held-out rows, of the shift of a
    row's logit vector: `q_j = sum_e <s_je, z_e> / sqrt(k m)`, s of random signs, m rows.
    """
    total = torch.zeros(k, len(theta), dtype=theta.dtype, device=theta.device)
    for start in range(0, len(rows), batch_size):
        numbers = range(start, min(start + batch_size, len(rows)))
        batch = rows.batch(numbers)
        logits, pull = vjp(lambda theta, inputs=batch.inputs: objective.logits(theta, inputs), theta)[:2]
        signs = output_signs(numbers, k, tuple(logits.shape[1:]), seed).to(logits)
        counted = objective.loss(batch).counted(batch.labels)
        if counted is not None:
            signs *= counted[..., None]  # padding has logits too
        total += vmap(lambda s, pull=pull: pull(s)[0], chunk_size=16)(signs)
    return total / (k * len(rows)) ** 0.5


def output_signs(rows: range, k: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """
    Signs `(k, B, *shape)` for the logits of held-out rows.

    Those of a row and position depend on their numbers and the seed alone, however far the batch is padded.
    """
    size = (shape[0], k, *shape[1:])
    draws = [np.random.default_rng([seed, row]).integers(0, 2, size, dtype=np.int8) for row in rows]
    return torch.from_numpy(np.stack(draws)).movedim(2, 0) * 2 - 1


def parameter_directions(theta: torch.Tensor, k: int, *, seed: int) -> torch.Tensor:
    """Gaussian projections of the parameters, scaled so that the L2 norm of the k answers estimates the shift's."""
    generator = torch.Generator().manual_seed(seed)
    # One at a time, as the projected engine draws them: torch's draws depend on how many are asked for at once.
    draws = [torch.randn(len(theta), generator=generator, dtype=torch.float32) for _ in range(k)]
    return torch.stack(draws).to(theta) / k**0.5


def loss_direction(objective: Objective, theta: torch.Tensor, rows: Rows, *, batch_size: int) -> torch.Tensor:
    """The gradient of the mean loss of the held-out rows, `(1, p)`."""
    total, items = torch.zeros_like(theta), 0.0
    for start in range(0, len(rows), batch_size):
        batch = rows.batch(range(start, min(start + batch_size, len(rows))))
        counts = objective.items(batch)
        total += grad(lambda theta, b=batch, n=counts: objective.losses(theta, b) @ n)(theta)
        items += float(counts.sum())
    return (total / items)[None]
