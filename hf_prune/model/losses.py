"""The loss of one example: found by comparing with the loss that the model returns, never assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import grad, hessian, vmap
from torch.nn import functional

from hf_prune.errors import UnsupportedError

# The label of positions that no loss is taken at.
IGNORED = -100
# Up to this many logits an example, the Hessian of its loss in the logits is computed whole.
FACTORED_LOGITS = 64


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

    @property
    def of_whole_rows(self) -> bool:
        """Whether every example is one item."""
        return self.items is one_item

    def one(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """The loss of one example, without the batch dimension."""
        return self.losses(logits.unsqueeze(0), label.unsqueeze(0))[0]

    def logit_gradients(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The gradient of each example's loss in its own logits, of the logits' shape."""
        return vmap(grad(self.one))(logits, labels)

    def logit_hessians(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The Hessian of each example's loss in its own logits, `(B, C, C)`."""
        width = logits[0].numel()
        return vmap(hessian(self.one))(logits, labels).reshape(len(logits), width, width)


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
    """The items of a user's loss, which cannot be measured: labelled tokens where there is one label a token."""
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


def fitting_losses(logits: torch.Tensor, labels: torch.Tensor) -> list[ExampleLoss]:
    """The losses that logits and labels of these shapes and types can have."""
    whole = not labels.is_floating_point()
    if logits.ndim == 3 and whole and labels.shape == logits.shape[:2]:
        return [TOKEN_CROSS_ENTROPY, CAUSAL_CROSS_ENTROPY]
    if logits.ndim == 2 and whole and labels.numel() == len(logits) and logits.shape[1] > 1:
        return [CROSS_ENTROPY]
    if labels.numel() == logits.numel():
        both = logits.ndim == 2 and labels.shape == logits.shape
        return [SQUARED_ERROR, BINARY_CROSS_ENTROPY] if both else [SQUARED_ERROR]
    return []


def deviation(losses: torch.Tensor, items: torch.Tensor, figure: float, num_items: float | None = None) -> float:
    """
    How far the mean over all items lies from the loss that the model returned.

    Args:
        losses, items (`torch.Tensor`, `(B,)`): each example's loss, and how many items it is a mean over.
        figure (`float`): the loss that the model returned.
        num_items (`float`, *optional*): another count that it may have divided by.
    """
    total = float(torch.where(items > 0, losses * items, 0).double().sum())
    divisors = [float(items.sum())] + ([] if num_items is None else [float(num_items)])
    return min(abs(total / divisor - figure) for divisor in divisors)


def infer_loss(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> ExampleLoss:
    """
    The per-example loss whose mean over the items is the loss that the model returned, found by computing it.

    Raises:
        `UnsupportedError`: when none gives the model's own figure, to 1 part in 1,000.
    """
    figure = float(loss)
    for candidate in fitting_losses(logits, labels):
        off = deviation(candidate.losses(logits, labels), candidate.items(labels), figure)
        if off <= 1e-6 + 1e-3 * abs(figure):
            return candidate
    raise UnsupportedError(
        f"The model's loss ({figure:.4g}) is not the mean of a per-example cross-entropy, squared error or "
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
