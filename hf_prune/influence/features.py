"""What the trained model makes of each row: the vectors that selection represents along with the influence."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from hf_prune.errors import UnsupportedError
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.last_layer import inputs_of, last_linear
from hf_prune.model.micro_batches import parts_of
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows

logger = logging.getLogger(__name__)

Columns = Callable[[dict[str, list[Any]], list[int]], dict[str, np.ndarray]]

WIDTH = 64
"""Numbers a row at most; wider layers are randomly projected to that many."""


class LastInputs:
    """
    What enters the model's last linear layer: of each row `(B, d)`, or of each position `(B, ..., d)`.

    Args:
        objective (`Objective`): The model as a function of the recorded parameters.
        theta (`torch.Tensor`): Their values, `(p,)`.
        example (`Batch`): Some rows, by which the layer is found.

    Raises:
        `UnsupportedError`: if the logits are not what a linear layer gives.
    """

    def __init__(self, objective: Objective, theta: torch.Tensor, example: Batch):
        self.objective, self.theta = objective, theta
        self.layer, inputs, _ = last_layer(objective, theta, example.inputs)
        self.width = inputs.shape[-1]
        self.pooled = inputs.ndim == 2 and self._stopped(example).ndim == 3

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The inputs of a batch."""
        return last_layer(self.objective, self.theta, batch.inputs)[1] if self.pooled else self._stopped(batch)

    def _stopped(self, batch: Batch) -> torch.Tensor:
        """By a forward pass that ends before the layer: logits of a vocabulary would fill the memory."""
        with torch.no_grad(), self.objective.first_derivatives():
            found = inputs_of(self.layer, lambda: self.objective.logits(self.theta, batch.inputs))
        if found is None:
            name = type(self.objective.model).__name__
            raise UnsupportedError(f"{name} does not reach its last layer for every row.")
        return found


class RowFeatures:
    """
    The inputs of the model's last linear layer, for `Dataset.map`.

    A row of tokens has the mean over its labelled tokens. Layers of more than 64 inputs are projected to 64 numbers by
    a Gaussian matrix, which keeps distances to about a tenth (Johnson and Lindenstrauss).

    Args:
        objective (`Objective`): The model as a function of the recorded parameters.
        theta (`torch.Tensor`): Their values, `(p,)`.
        rows (`Rows`): The rows.
        column (`str`): Name of the column.

    Raises:
        `UnsupportedError`: if the logits are not what a linear layer gives.
    """

    def __init__(self, objective: Objective, theta: torch.Tensor, rows: Rows, column: str):
        self.rows, self.column = rows, column
        self.inputs = LastInputs(objective, theta, rows.batch([0]))
        self.projection = _projection(self.inputs.width).to(theta)

    @property
    def width(self) -> int:
        """Numbers a row."""
        return self.projection.shape[1]

    def on(self, rows: Rows) -> RowFeatures:
        """The features of other rows, by the same projection."""
        other = copy.copy(self)
        other.rows = rows
        return other

    def __call__(self, columns: dict[str, list[Any]], indices: list[int]) -> dict[str, np.ndarray]:
        return {self.column: self._of(indices).float().cpu().numpy()}

    def _of(self, indices: list[int]) -> torch.Tensor:
        try:
            batch = self.rows.batch(indices)
            found = batch.labels.new_empty(len(batch), self.width, dtype=self.projection.dtype)
            for own, part in parts_of(self.inputs.objective, batch, len(batch)):
                found[own] = _of_rows(self.inputs(part) @ self.projection, part)
            return found
        except RuntimeError as error:
            if len(indices) == 1 or not should_reduce_batch_size(error):
                raise
        half = len(indices) // 2
        return torch.cat([self._of(indices[:half]), self._of(indices[half:])])


@dataclass(frozen=True)
class WithFeatures:
    """The columns of a scorer and the features, in one pass."""

    scorer: Columns
    features: RowFeatures

    def __call__(self, columns: dict[str, list[Any]], indices: list[int]) -> dict[str, np.ndarray]:
        return self.scorer(columns, indices) | self.features(columns, indices)


def find_features(objective: Objective, theta: torch.Tensor, rows: Rows, column: str) -> RowFeatures | None:
    """The features of the rows; None, with a warning, where the model has no last linear layer."""
    try:
        return RowFeatures(objective, theta, rows, column)
    except UnsupportedError as error:
        logger.warning(f"{error} Selection will represent rows by their influence alone.")
        return None


def last_layer(
    objective: Objective, theta: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """
    The linear layer that gives the logits, its inputs `(B, ..., d)`, and the logits `(B, ..., C)`.

    Heads that take one position's logits (GPT-2's and Llama's for sequences) have the inputs at that position.

    Raises:
        `UnsupportedError`: if the logits are not what the last linear layer gives.
    """
    with objective.first_derivatives():
        found = last_linear(objective.model, lambda: objective.logits(theta, inputs))
    if found is None:
        raise UnsupportedError(f"No linear layer of {type(objective.model).__name__} gives its logits.")
    return found


def _projection(inputs: int) -> torch.Tensor:
    """`(inputs, width)`: the identity, or a Gaussian matrix that keeps lengths on average."""
    if inputs <= WIDTH:
        return torch.eye(inputs)
    generator = torch.Generator().manual_seed(0)  # one space for all scorings, whatever their directions' seed
    return torch.randn(inputs, WIDTH, generator=generator) / WIDTH**0.5


def _of_rows(inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """One vector a row, `(B, d)`: of several positions the mean over the labelled ones, or over all."""
    if inputs.ndim == 2:
        return inputs
    weights = torch.ones(inputs.shape[:-1], device=inputs.device, dtype=inputs.dtype)
    if batch.labels.shape == weights.shape and not batch.labels.is_floating_point():
        weights = (batch.labels != IGNORED).to(inputs.dtype)
    inputs, weights = inputs.flatten(1, -2), weights.flatten(1)
    return (inputs * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
