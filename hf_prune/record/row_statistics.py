"""What the model made of each row of a training batch: its loss, the label's probability and margin, and the like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_prune.errors import RecordingError
from hf_prune.model.batch import IGNORED
from hf_prune.model.losses import (
    CAUSAL_CROSS_ENTROPY,
    CROSS_ENTROPY,
    TOKEN_CROSS_ENTROPY,
    ExampleLoss,
    deviation,
    fitting_losses,
)
from hf_prune.model.outputs import logits_in, loss_in
from hf_prune.trajectory.visits import STATISTICS

# Logits processed at once: a language model's whole batch of probabilities would be gigabytes.
_CHUNK = 2**22
# A loss that is off by more than this share is another one.
_TOLERANCE = 0.05


class RowStatistics:
    """
    Turns a forward pass into statistics of each row, `(5, B)` in the order of `STATISTICS`, on the model's device.

    What an example's loss is (of its class, of its tokens, of the next tokens, of its values) is decided on the first
    batch by comparing with the loss that the model returned. A row of tokens gets means over its labelled tokens; rows
    of numbers have a loss and no other statistic, which are NaN.

    Attributes:
        failure (`str`, *optional*): Why there are none: training goes on without.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._of_rows: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __call__(self, output: Any, labels: torch.Tensor | None, num_items: Any) -> torch.Tensor | None:
        """
        Args:
            output (`Any`): What the model returned.
            labels (`torch.Tensor`, *optional*): The labels that it was given.
            num_items (`Any`): `num_items_in_batch`, if it was given.
        """
        if self.failure is not None:
            return None
        try:
            return self._compute(output, labels, num_items)
        except Exception as error:  # whatever a model returns, its training must not end here
            self.failure = str(error) or type(error).__name__
            return None

    @torch.no_grad()
    def _compute(self, output: Any, labels: torch.Tensor | None, num_items: Any) -> torch.Tensor:
        logits = logits_in(output)
        if logits is None:
            return _of_log_probs(output)
        if labels is None:
            raise RecordingError(
                "The model was given no labels: the Trainer keeps them from it where it computes the loss itself."
            )
        if self._of_rows is None:
            self._of_rows = _find(logits, labels, loss_in(output), num_items)
        return self._of_rows(logits, labels)


def _of_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    labels = labels.reshape(-1)
    items = _of_items(logits, labels.clamp(min=0))
    return torch.where(labels == IGNORED, math.nan, items)


def _of_tokens(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    counted = labels != IGNORED
    items = _of_items(logits.flatten(0, 1), labels.clamp(min=0).flatten()).view(-1, *labels.shape)
    return torch.where(counted, items, 0).sum(2) / counted.sum(1)


def _of_next_tokens(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _of_tokens(logits[:, :-1], labels[:, 1:])


def _loss_alone(losses: torch.Tensor) -> torch.Tensor:
    statistics = losses.new_full((len(STATISTICS), len(losses)), math.nan)
    statistics[0] = losses
    return statistics


def _of_log_probs(output: Any) -> torch.Tensor:
    """Of trl's SFTTrainer, whose model returns the log-probabilities `(B, T)` of the labels in the logits' place."""
    log_probs, labelled = _field(output, "log_probs"), _field(output, "label_mask")
    if log_probs is None or labelled is None or log_probs.ndim != 2:
        raise RecordingError("The model returned no logits.")
    counted = labelled.bool()
    first = _field(output, "is_top1")
    right = torch.full_like(log_probs, math.nan) if first is None else first.to(log_probs)
    unknown = torch.full_like(log_probs, math.nan)
    items = torch.stack([-log_probs, log_probs.exp(), unknown, unknown, right]).float()
    return torch.where(counted, items, 0).sum(2) / counted.sum(1)


def _of_items(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Statistics `(5, N)` of items with logits `(N, C)` and labels `(N,)`."""
    size = max(1, _CHUNK // logits.shape[1])
    if len(logits) <= size:
        return _of_chunk(logits, labels)
    return torch.cat([_of_chunk(*chunk) for chunk in zip(logits.split(size), labels.split(size), strict=True)], 1)


def _of_chunk(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Worked in one buffer, and from the other classes alone: 1 - p_y would cancel where the model is sure.
    others = logits.to(torch.float32, copy=True)
    place = labels[:, None]
    label = others.gather(1, place)[:, 0]
    rival = others.scatter_(1, place, -math.inf).amax(1)
    top = torch.maximum(rival, label)
    others.sub_(top[:, None]).exp_()
    rest, own = others.sum(1), (label - top).exp()
    total = rest + own
    error = torch.linalg.vector_norm(others, dim=1).hypot(rest) / total
    margin = label - rival
    return torch.stack([top - label + total.log(), own / total, margin, error, (margin > 0).float()])


Statistics = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_OF_ITEMS: dict[ExampleLoss, Statistics] = {
    CROSS_ENTROPY: _of_classes,
    TOKEN_CROSS_ENTROPY: _of_tokens,
    CAUSAL_CROSS_ENTROPY: _of_next_tokens,
}


def _statistics(loss: ExampleLoss) -> Statistics:
    """The statistics of rows with this loss."""
    return _OF_ITEMS.get(loss, lambda logits, labels: _loss_alone(loss.losses(logits.float(), labels)))


def _find(logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor | None, num_items: Any) -> Statistics:
    """The statistics whose losses have the mean that the model returned."""
    fitting = fitting_losses(logits, labels)
    if len(fitting) == 1:
        return _statistics(fitting[0])
    if fitting and loss is not None:
        figure, count = float(loss), None if num_items is None else float(num_items)
        off = {
            kind: deviation(_statistics(kind)(logits, labels)[0], kind.items(labels), figure, count)
            for kind in fitting
        }
        best = min(fitting, key=off.__getitem__)
        if off[best] <= _TOLERANCE * abs(figure):
            return _statistics(best)
    raise RecordingError(
        f"The model's loss is not the mean of a cross-entropy or squared error of its logits {tuple(logits.shape)} "
        f"and labels {tuple(labels.shape)}."
    )


def _field(output: Any, name: str) -> torch.Tensor | None:
    value = output.get(name) if isinstance(output, Mapping) else None
    return value if isinstance(value, torch.Tensor) else None
