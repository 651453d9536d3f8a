"""The loss of one example, found by comparing with the model's own figure, never assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from hf_prune.errors import UnsupportedError

IGNORED = -100


def one_item(labels: torch.Tensor) -> torch.Tensor:
    """An example is one item."""
    return torch.ones(len(labels), device=labels.device)


def every_output(labels: torch.Tensor) -> torch.Tensor | None:
    """All of an example's logits count."""
    return None


@dataclass(frozen=True)
class ExampleLoss:
    """
    The loss of each example, and what the model's own loss is a mean over.

    Attributes:
        losses (`Callable`): `(logits, labels) -> (B,)`; the loss of an example is the mean over its items.
        items (`Callable`): `labels -> (B,)`, the number of items of each example: 1, or its labelled tokens.
        counted (`Callable`): `labels -> (B, T)`, which positions' logits the loss looks at; `None` for all of them.
    """

    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    items: Callable[[torch.Tensor], torch.Tensor] = one_item
    counted: Callable[[torch.Tensor], torch.Tensor | None] = every_output


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels.view(-1), reduction="none")


def _squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits - labels.view_as(logits).to(logits)).square().flatten(1).mean(1)


def _binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").mean(1)


def _labelled(labels: torch.Tensor) -> torch.Tensor:
    return labels != IGNORED


def _labelled_next(labels: torch.Tensor) -> torch.Tensor:
    return functional.pad(_labelled(labels[:, 1:]), (0, 1), value=False)


def _token_items(labels: torch.Tensor) -> torch.Tensor:
    return _labelled(labels).sum(1).float()


def _user_items(labels: torch.Tensor) -> torch.Tensor:
    """Of a user's loss, whose items nobody knows: the labelled tokens where labels are one a token."""
    tokens = labels.ndim == 2 and not labels.is_floating_point()
    return _token_items(labels) if tokens else one_item(labels)


def _token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(1) / _token_items(labels).clamp(min=1)


CROSS_ENTROPY = ExampleLoss(_cross_entropy)
SQUARED_ERROR = ExampleLoss(_squared_error)
BINARY_CROSS_ENTROPY = ExampleLoss(_binary_cross_entropy)
TOKEN_CROSS_ENTROPY = ExampleLoss(_token_cross_entropy, _token_items, _labelled)
CAUSAL_CROSS_ENTROPY = ExampleLoss(
    lambda logits, labels: _token_cross_entropy(logits[:, :-1], labels[:, 1:]),
    lambda labels: _token_items(labels[:, 1:]),
    _labelled_next,
)


def _fits(logits: torch.Tensor, labels: torch.Tensor) -> list[ExampleLoss]:
    whole = not labels.is_floating_point()
    if logits.ndim == 3 and whole and labels.shape == logits.shape[:2]:
        return [TOKEN_CROSS_ENTROPY, CAUSAL_CROSS_ENTROPY]
    if logits.ndim == 2 and whole and labels.numel() == len(logits) and logits.shape[1] > 1:
        return [CROSS_ENTROPY]
    if labels.numel() == logits.numel():
        return [SQUARED_ERROR, BINARY_CROSS_ENTROPY] if logits.ndim == 2 else [SQUARED_ERROR]
    return []


def infer_loss(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> ExampleLoss:
    """
    The per-example loss whose mean over the items is the loss that the model returned, found by computing it.

    Raises:
        `UnsupportedError`: when none gives the model's own figure, to 1 part in 1,000.
    """
    for candidate in _fits(logits, labels):
        items = candidate.items(labels)
        mean = (candidate.losses(logits, labels) * items).sum() / items.sum()
        if torch.allclose(mean, loss.to(mean), rtol=1e-3, atol=1e-6):
            return candidate
    raise UnsupportedError(
        f"The model's loss ({loss.item():.4g}) is not the mean of a per-example cross-entropy, squared error or "
        f"binary cross-entropy of its logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; pass "
        "loss=, a function (logits, labels) -> losses of shape (batch,)."
    )


def from_user(function: Callable[..., Any]) -> ExampleLoss:
    """Wraps the user's `loss(logits, labels) -> (B,)`, checking the shape that it returns."""

    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        values = function(logits, labels)
        if not isinstance(values, torch.Tensor) or values.shape != (len(logits),):
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(
                f"loss= must return one loss per example, shape ({len(logits)},), but it returned {shape}; "
                "use reduction='none' and average over each example's own items."
            )
        return values

    return ExampleLoss(losses, _user_items)
