"""The space that rows are represented in: what the model makes of them, and what each does to the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_prune.selection.problem import Problem


@dataclass(frozen=True)
class Representation:
    """
    Influence, shortened influence and features side by side, each of root mean square length 1.

    A shortened vector is divided by the square root of its length: lengths have a heavy tail, and without it a few
    rows would decide what all others have to cancel. Of the influence only the solver's directions are used, so that
    the audit stays one.

    Args:
        problem (`Problem`): The rows.
        influence (`float`): Root mean square length of the influence vectors.
        shortened (`float`): That of the shortened ones.
        features (`float`): That of the features about their mean; 0 where there are none.
        mean (`np.ndarray`): Mean of the features, `(d,)`.
    """

    problem: Problem
    influence: float
    shortened: float
    features: float
    mean: np.ndarray

    @classmethod
    def of(cls, problem: Problem) -> Representation:
        """Reads the scales of all rows, block by block."""
        lengths = np.concatenate(
            [np.linalg.norm(block[:, : problem.solver], axis=1) for _, block in problem.vectors.blocks()]
        ).astype(np.float64)
        mean, square = np.zeros(0), 0.0
        if problem.features is not None:
            blocks = problem.features.blocks
            mean = np.sum([block.sum(axis=0, dtype=np.float64) for _, block in blocks()], axis=0) / problem.n
            square = sum(float(((block - mean) ** 2).sum()) for _, block in blocks()) / problem.n
        return cls(problem, float((lengths**2).mean() ** 0.5), float(lengths.mean() ** 0.5), square**0.5, mean)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of some rows, float32 of shape `(rows, 2 * solver + d)`."""
        influence = self.problem.vectors.take(rows)[:, : self.problem.solver]
        lengths = np.linalg.norm(influence, axis=1, keepdims=True)
        parts = [
            influence / (self.influence or 1.0),
            influence / np.sqrt(np.where(lengths > 0, lengths, 1.0)) / (self.shortened or 1.0),
        ]
        if self.problem.features is not None:
            parts.append((self.problem.features.take(rows) - self.mean) / (self.features or 1.0))
        return np.concatenate(parts, axis=1, dtype=np.float32)
