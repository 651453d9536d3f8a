"""The influence columns of a dataset as arrays: what every selection method reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from .classes import Classes, read_classes
from .columns import CHUNK, check_dataset, read_matrix, read_scalars


@dataclass(frozen=True)
class Problem:
    """
    What there is to choose from: `n` rows, each with its influence on `k` directions.

    Args:
        influence (`np.ndarray`): Shift of the result if a row is removed, float32 of shape `(n, k)`.
        norm (`np.ndarray`): Its length, float32 of shape `(n,)`.
        eval_loss (`np.ndarray`, *optional*): Predicted change of the held-out loss, float32 of shape `(n,)`.
        classes (`Classes`, *optional*): Classes to balance.
        mean (`np.ndarray`): Mean influence, float64 of shape `(k,)`; `influence - mean` are the centred vectors.
    """

    influence: np.ndarray
    norm: np.ndarray
    eval_loss: np.ndarray | None
    classes: Classes | None
    mean: np.ndarray

    @property
    def n(self) -> int:
        return self.influence.shape[0]

    @property
    def k(self) -> int:
        return self.influence.shape[1]

    @property
    def audit(self) -> int:
        """Number of audit directions: the last quarter, which no solver sees."""
        return self.k // 4

    @property
    def solver(self) -> int:
        """Number of solver directions: the first `k - k // 4`."""
        return self.k - self.audit

    def solver_vectors(self, rows: np.ndarray | slice) -> np.ndarray:
        """Centred influence on the solver directions, float64 of shape `(rows, solver)`."""
        return self.influence[rows, : self.solver] - self.mean[: self.solver]

    def centred_sums(self, dropped: np.ndarray) -> np.ndarray:
        """
        Sum of the centred vectors over each set of dropped rows.

        Args:
            dropped (`np.ndarray`): One mask a set, bool of shape `(sets, n)`.

        Returns:
            `np.ndarray`: float64 of shape `(sets, k)`.
        """
        totals = np.zeros((len(dropped), self.k))
        for start in range(0, self.n, CHUNK):
            block = self.influence[start : start + CHUNK] - self.mean
            totals += dropped[:, start : start + CHUNK].astype(np.float64) @ block
        return totals

    def shift(self, dropped: np.ndarray) -> float:
        """Predicted shift of the result without the rows of the mask `dropped`, of shape `(n,)`, over all k."""
        return float(np.linalg.norm(reweight(self.n, int(dropped.sum())) * self.centred_sums(dropped[None])[0]))


def reweight(n: int, dropped: int) -> float:
    """The factor n/(n-m): retraining on n-m rows gives each of them n/(n-m) times its old weight."""
    return n / (n - dropped)


def read_problem(dataset: Dataset, column: str, balance: str | bool | None) -> Problem:
    """
    Reads and checks the influence columns of a dataset.

    Args:
        dataset (`Dataset`): Dataset with the columns that `add_influence` writes.
        column (`str`): Name of the influence column; the others are `{column}_norm` and `{column}_eval_loss`.
        balance (`str`, `False` or `None`): See [`prune`].

    Raises:
        `TypeError`: If `dataset` is no `Dataset`, or a column holds something else than numbers.
        `ValueError`: If there are no rows, a column is missing, or it holds NaN or infinite values.
    """
    check_dataset(dataset)
    influence = read_matrix(dataset, column)
    n, k = influence.shape
    if k > n:
        raise ValueError(
            f"Column {column!r} has {k} directions but the dataset only {n} rows: score it again with "
            f"`add_influence(..., directions={n})` or fewer, or add rows."
        )
    norm = read_scalars(dataset, f"{column}_norm")
    eval_loss = read_scalars(dataset, f"{column}_eval_loss") if f"{column}_eval_loss" in dataset.column_names else None
    mean = np.zeros(k)
    for start in range(0, n, CHUNK):
        mean += influence[start : start + CHUNK].sum(axis=0, dtype=np.float64)
    return Problem(influence, norm, eval_loss, read_classes(dataset, balance), mean / n)
