"""Whether rows of tokens are the same without the padding on their right: measured, because models do not say."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn

from hf_prune.model.batch import Batch
from hf_prune.model.losses import ExampleLoss, UserLoss

# Relative difference of what a model makes of a row with its padding and without it.
TOLERANCE = 1e-3
# Rows of the first batch that are looked at.
ROWS = 8


class Trained(Protocol):
    """What is asked of a trained model: a part of [`Objective`]."""

    model: nn.Module

    def flatten(self) -> torch.Tensor: ...

    def unflatten(self, theta: torch.Tensor) -> dict[str, torch.Tensor]: ...

    def outputs(self, values: Mapping[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor: ...

    def loss(self, batch: Batch) -> ExampleLoss: ...

    def losses(self, theta: torch.Tensor, batch: Batch) -> torch.Tensor: ...

    def first_derivatives(self) -> AbstractContextManager[None]: ...


class Padding:
    """
    What was seen of padding in the batches so far.

    Attributes:
        counts (`bool`): whether outputs or a user's losses depend on it.
        widest (`int`): the tokens of the widest batch.
        shortest (`int`): those of the shortest row.
    """

    def __init__(self) -> None:
        self.counts, self.widest, self.shortest = False, 0, sys.maxsize

    @torch.no_grad()
    def is_ignored(self, objective: Trained, batch: Batch) -> bool:
        """
        Whether rows of masked tokens have the same outputs and losses without the padding on their right.

        Measured on some rows of the first batch that has padding, and on the shortest row again where a batch is wider
        or a row shorter than all before: positions may be told otherwise there.
        """
        lengths = None if self.counts else batch.lengths()
        if lengths is None or _switches_attention(objective.model):
            return False
        width, shortest = batch.inputs["attention_mask"].shape[1], int(lengths.min())
        if shortest < width and (width > self.widest or shortest < self.shortest):
            order = lengths.argsort()[: int((lengths < width).sum())]
            rows = order[:1] if self.widest else order[:: -(-len(order) // ROWS)]
            self.widest, self.shortest = max(self.widest, width), min(self.shortest, shortest)
            theta = objective.flatten()
            self.counts = not all(_is_same_cut(objective, theta, batch.part(i[None]), int(lengths[i])) for i in rows)
        return not self.counts


def _is_same_cut(objective: Trained, theta: torch.Tensor, row: Batch, length: int) -> bool:
    both = row, row.cut(max(1, length))
    with objective.first_derivatives():
        outputs = [objective.outputs(objective.unflatten(theta), one.inputs) for one in both]
        users = isinstance(objective.loss(row), UserLoss)
        losses = [objective.losses(theta, one) for one in both] if users else []
    return all(_alike(*pair) for pair in (outputs, losses) if pair)


def _alike(padded: torch.Tensor, cut: torch.Tensor) -> bool:
    """Whether these are the same but for rounding, as far as both reach."""
    own = padded[:, : cut.shape[1]] if cut.ndim > 1 else padded
    return own.shape == cut.shape and bool((own - cut).norm() <= TOLERANCE * (own.norm() + 1e-3))


def _switches_attention(model: nn.Module) -> bool:
    """Whether a short row makes the model attend in another way from then on (BigBird)."""
    return getattr(getattr(model, "config", None), "attention_type", None) == "block_sparse"
