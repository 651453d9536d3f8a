"""The influence columns of a dataset as arrays: what every selection method reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset

from hf_prune._core.columns import InfluenceColumns
from hf_prune.selection.classes import Classes, read_classes
from hf_prune.selection.columns import check_dataset, read_scalars
from hf_prune.selection.vectors import Vectors, mean_of, read_vectors


@dataclass(frozen=True)
class Problem:
    """
    What there is to choose from: `n` rows, each with its influence on `k` directions.

    Args:
        dataset (`Dataset`): Where further columns are read from.
        vectors (`Vectors`): Shift of the result if a row is removed, `n` times `(k,)`, read when it is needed.
        norm (`np.ndarray`): Its length, float32 of shape `(n,)`.
        eval_loss (`np.ndarray`, *optional*): Predicted change of the held-out loss, float32 of shape `(n,)`.
        features (`Vectors`, *optional*): What the trained model makes of each row, `n` times `(d,)`.
        classes (`Classes`, *optional*): Classes to balance.
        mean (`np.ndarray`): What is taken off each vector, float64 of shape `(k,)`: their mean, or 0.
        centred (`bool`): Whether vectors are centred, and shifts re-weighted; else both are the plain sums.
        rows (`np.ndarray`, *optional*): Which rows of the dataset these are, int64 of shape `(n,)`; all by default.
    """

    dataset: Dataset
    vectors: Vectors
    norm: np.ndarray
    eval_loss: np.ndarray | None
    features: Vectors | None
    classes: Classes | None
    mean: np.ndarray
    centred: bool = True
    rows: np.ndarray | None = None

    @property
    def n(self) -> int:
        return len(self.vectors)

    @property
    def k(self) -> int:
        return self.vectors.k

    @property
    def audit(self) -> int:
        """Number of audit directions: the last quarter, which no solver sees."""
        return self.k // 4

    @property
    def solver(self) -> int:
        """Number of solver directions: the first `k - k // 4`."""
        return self.k - self.audit

    def solver_vectors(self, rows: np.ndarray) -> np.ndarray:
        """Centred influence on the solver directions, float64 of shape `(rows, solver)`."""
        return self.vectors.take(rows)[:, : self.solver] - self.mean[: self.solver]

    def centred_sums(self, dropped: np.ndarray) -> np.ndarray:
        """
        Sum of the centred vectors over each set of dropped rows.

        Args:
            dropped (`np.ndarray`): One mask a set, bool of shape `(sets, n)`.

        Returns:
            `np.ndarray`: float64 of shape `(sets, k)`.
        """
        totals = np.zeros((len(dropped), self.k))
        for rows, block in self.vectors.blocks():
            totals += dropped[:, rows].astype(np.float64) @ (block - self.mean)
        return totals

    def reweight(self, dropped: int) -> float:
        """The factor n/(n-m): retraining on n-m rows gives each of them n/(n-m) times its old weight."""
        return self.n / (self.n - dropped) if self.centred else 1.0

    def shift(self, dropped: np.ndarray) -> float:
        """Predicted shift of the result without the rows of the mask `dropped`, of shape `(n,)`, over all k."""
        return float(np.linalg.norm(self.reweight(int(dropped.sum())) * self.centred_sums(dropped[None])[0]))

    def column(self, name: str, fix: str | None = None) -> np.ndarray:
        """
        Another column of one number a row, float32 of shape `(n,)`.

        Args:
            name (`str`): The column.
            fix (`str`, *optional*): How to get it where it is missing; by default `add_scores`.
        """
        values = read_scalars(self.dataset, name, fix or "make it with `add_scores(dataset, trajectory)`")
        return values if self.rows is None else values[self.rows]

    def table(self, name: str) -> Vectors:
        """Another column of vectors."""
        vectors = read_vectors(self.dataset, name)
        mean_of(vectors, name)  # checks the values
        return vectors if self.rows is None else vectors.select(self.rows)

    def take(self, rows: np.ndarray) -> Problem:
        """
        The problem that is left when these rows, sorted indices, are all there is.

        The rows are centred again, because they are what a training on them would see.
        """
        vectors = self.vectors.select(rows)
        return replace(
            self,
            vectors=vectors,
            norm=self.norm[rows],
            eval_loss=None if self.eval_loss is None else self.eval_loss[rows],
            features=None if self.features is None else self.features.select(rows),
            classes=None if self.classes is None else self.classes.take(rows),
            mean=mean_of(vectors, "influence") if self.centred else self.mean,
            rows=rows if self.rows is None else self.rows[rows],
        )


def read_problem(dataset: Dataset, column: str, balance: str | bool | None, centred: bool = True) -> Problem:
    """
    Reads and checks the influence columns of a dataset.

    Args:
        dataset (`Dataset`): Dataset with the columns that `add_influence` writes.
        column (`str`): Name of the influence column.
        balance (`str`, `False` or `None`): See [`prune`].
        centred (`bool`, *optional*, defaults to `True`): See [`prune`].

    Raises:
        `TypeError`: If `dataset` is not a `Dataset`, or a column holds anything but numbers.
        `ValueError`: If there are no rows, a column is missing, or it holds NaN or infinite values.
    """
    check_dataset(dataset)
    vectors = read_vectors(dataset, column)
    n, k = len(vectors), vectors.k
    if k > n:
        raise ValueError(
            f"Column {column!r} has {k} directions but the dataset only {n} rows: score it again with "
            f"`add_influence(..., directions={n})` or fewer, or add rows."
        )
    mean = mean_of(vectors, column)
    columns = InfluenceColumns(column)
    norm = read_scalars(dataset, columns.norm)
    eval_loss = read_scalars(dataset, columns.eval_loss) if columns.eval_loss in dataset.column_names else None
    features = None
    if columns.features in dataset.column_names:
        features = read_vectors(dataset, columns.features)
        mean_of(features, columns.features)  # checks the values
    classes = read_classes(dataset, balance)
    return Problem(dataset, vectors, norm, eval_loss, features, classes, mean if centred else np.zeros(k), centred)
