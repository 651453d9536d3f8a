"""How near each row is to the rows of a target task: by gradients (LESS), and by hidden states (RDS)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import normalize

from hf_prune.influence.features import LastInputs
from hf_prune.model.batch import Batch
from hf_prune.model.per_example import batch_gradient, example_gradients
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from hf_prune.scores.grand import rows_at_once

WIDTH = 64
"""Target rows that similarities are kept to; of more rows, those to groups of them."""


def less(replay: Replay, rows: Rows, target: Rows, batch_size: int) -> np.ndarray:
    """
    `sum_e eta_e cos(mean of grad l(target; theta_e), grad l_i(theta_e) / denominator_e)`, of one target task.

    Xia et al., [arXiv 2402.04333](https://hf.co/papers/2402.04333), over the snapshots e that end a segment of the
    window; eta is the mean learning rate of the segment. Adam's update is taken from the row's gradient alone: its
    first moment, the same for all rows, is not recorded. Gradients are whole, not projected.

    Args:
        replay (`Replay`): The recorded run with its model.
        rows (`Rows`): The rows to score, which need not be those of the run.
        target (`Rows`): The rows of the target task.
        batch_size (`int`): Rows in one pass, fewer where their gradients would take more than 1 GiB.

    Returns:
        `np.ndarray`: `(n,)`, float32.
    """
    objective, size = replay.objective, rows_at_once(replay, batch_size)
    segments = list(pairwise(replay.trajectory.snapshot_steps))
    total = np.zeros(len(rows))
    for place, (first, last) in enumerate(segments):
        theta, divisor = replay.theta(last), replay.denominator(last - 1)
        parts = (batch_gradient(objective, theta, b, theta.new_ones(len(b))) for _, b in target.batches(batch_size))
        wanted = normalize(sum(parts, torch.zeros_like(theta)), dim=0)
        rate = float(np.mean([replay.trajectory.step(t).learning_rates[0] for t in range(first, last)]))
        for part, batch in rows.batches(size, f"LESS, snapshot {place + 1} of {len(segments)}"):
            gradients = example_gradients(objective, theta, batch)
            updates = gradients if divisor is None else gradients / divisor
            cosines = normalize(updates, dim=1) @ wanted
            total[part.start : part.stop] += rate * cosines.cpu().double().numpy()
    return total.astype(np.float32)


def rds(replay: Replay, rows: Rows, target: Rows, batch_size: int) -> np.ndarray:
    """
    The cosine of each row's representation with each target row's, or its mean over each of 64 groups of them.

    A row's representation is the mean of its last hidden states, the position being the weight: Ivison et al.,
    [arXiv 2503.01807](https://hf.co/papers/2503.01807). Where the model has one vector a row, it is that vector.

    Args:
        replay (`Replay`): The recorded run with its model.
        rows (`Rows`): The rows to score, which need not be those of the run.
        target (`Rows`): The rows of the target task.
        batch_size (`int`): Rows in one pass.

    Returns:
        `np.ndarray`: `(n, target rows, or 64)`, float32.

    Raises:
        `UnsupportedError`: Where no linear layer gives the logits.
    """
    inputs = LastInputs(replay.objective, replay.theta(replay.last), rows.batch([0]))

    def units(batch: Batch) -> torch.Tensor:
        return normalize(by_position(inputs(batch), batch), dim=1)

    every = torch.cat([units(batch) for _, batch in target.batches(batch_size)])
    wanted = torch.stack([group.mean(0) for group in every.tensor_split(min(len(every), WIDTH))])
    found = [(units(batch) @ wanted.T).float().cpu() for _, batch in rows.batches(batch_size, "RDS")]
    return torch.cat(found).numpy()


def by_position(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean `(B, d)` over a row's positions of `(B, ..., d)`: the first weighs 1, the second 2, and so on."""
    if states.ndim == 2:
        return states
    mask = batch.inputs.get("attention_mask")
    if mask is None or mask.shape != states.shape[:-1]:
        mask = states.new_ones(states.shape[:-1])
    weights = mask.flatten(1).to(states.dtype)
    weights = weights * weights.cumsum(1)
    return (weights[..., None] * states.flatten(1, -2)).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
