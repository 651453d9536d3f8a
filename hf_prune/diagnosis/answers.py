"""The queries that rows were scored with, answered by the model of a re-run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_prune._core.config import ScoringConfig
from hf_prune.influence.queries import output_signs, parameter_queries
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows


@dataclass(frozen=True)
class Answers:
    """The answers `(k,)` to k queries, float64, and the mean loss on the held-out rows."""

    queries: np.ndarray
    loss: float

    def __sub__(self, other: Answers) -> Answers:
        return Answers(self.queries - other.queries, self.loss - other.loss)

    @property
    def length(self) -> float:
        return float(np.linalg.norm(self.queries))

    def error(self, predicted: Answers) -> float:
        """Length of what a prediction is off by, over that of the truth."""
        return float(np.linalg.norm(predicted.queries - self.queries) / max(self.length, 1e-30))

    def correlation(self, predicted: Answers) -> float:
        """Pearson's, over the queries; 0 where one of the two is constant."""
        centred = [values - values.mean() for values in (self.queries, predicted.queries)]
        lengths = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
        return float(centred[0] @ centred[1]) / lengths if lengths > 0 else 0.0


@torch.no_grad()
def answers(
    objective: Objective, theta: torch.Tensor, held_out: Rows, scoring: ScoringConfig, batch_size: int
) -> Answers:
    """
    Answers the queries of `add_influence` at `theta (p,)`: `q_j = sum_e <s_je, z_e> / sqrt(k m)` with random signs
    s, over the logits z of m held-out rows, or projections of the parameters.

    Args:
        scoring (`ScoringConfig`): How the rows were scored: `directions`, `seed` and `space`.
    """
    k, seed = scoring.directions, scoring.seed
    total = torch.zeros(k, dtype=torch.float64)
    losses = items = 0.0
    for numbers, batch in held_out.batches(batch_size):
        logits, counts, loss = objective.logits(theta, batch.inputs), objective.items(batch), objective.loss(batch)
        losses += float(loss.of(logits, batch) @ counts)
        items += float(counts.sum())
        if scoring.space == "outputs":
            signs = output_signs(numbers, k, tuple(logits.shape[1:]), seed).to(logits)
            counted = loss.counted(batch.labels)
            if counted is not None:
                signs *= counted[..., None]
            total += (signs.flatten(1) @ logits.flatten()).cpu().double()
    queries = total / (k * len(held_out)) ** 0.5
    if scoring.space == "parameters":
        queries = (parameter_queries(theta, k, seed=seed) @ theta).cpu().double()
    return Answers(queries.numpy(), losses / items)
