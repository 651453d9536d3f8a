"""The loss of one example: found by comparing with the loss that the model returns, never assumed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import autograd
from torch.nn import functional

from hf_prune.errors import UnsupportedError
from hf_prune.model.batch import IGNORED, Batch

# Up to this many logits an example, the Hessian of its loss in the logits is computed whole.
FACTORED_LOGITS = 64

Inputs = dict[str, torch.Tensor]
OfLogits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def labelled_row(labels: torch.Tensor) -> torch.Tensor:
    """An example is one item, or none if its class is `IGNORED`."""
    if labels.is_floating_point() or labels.numel() != len(labels):
        return torch.ones(len(labels), device=labels.device)
    return (labels.reshape(-1) != IGNORED).float()


def no_tokens(labels: torch.Tensor) -> torch.Tensor | None:
    """The loss is none of tokens, and all of an example's logits count."""
    return None


@dataclass(frozen=True)
class ExampleLoss:
    """
    The loss of each example, and what the model's own loss is a mean over.

    Attributes:
        losses (`Callable`): `(logits, labels) -> (B,)`; the loss of an example is the mean over its items.
        items (`Callable`): `labels -> (B,)`, the number of items of each example: 1, or its labelled tokens.
        targets (`Callable`): `labels -> (B, T)`, of a cross-entropy of tokens the class that each position's logits
            are to tell, or `IGNORED`; `None` for other losses.
        by_tokens (`bool`): whether the items are tokens.
        is_output (`bool`): whether the logits are the losses, so that there is no curvature in them.
        smoothing (`float`): what label smoothing spreads over all classes.
    """

    losses: OfLogits
    items: Callable[[torch.Tensor], torch.Tensor] = labelled_row
    targets: Callable[[torch.Tensor], torch.Tensor | None] = no_tokens
    by_tokens: bool = False
    is_output: bool = False
    smoothing: float = 0.0

    def counted(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Which positions' logits the loss looks at, `(B, T)`; `None` for all of them."""
        targets = self.targets(labels)
        return None if targets is None else _labelled(targets)

    def of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The losses `(B,)` of a batch with these logits."""
        return self.losses(logits, batch.labels)

    def items_of(self, batch: Batch, logits: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The number of items `(B,)` of each example; `logits()` computes the batch's where they are needed for it."""
        return self.items(batch.labels)

    def counts_tokens(self, labels: torch.Tensor) -> bool:
        """Whether the mean is over tokens, of which a batch has fewer once a row is gone."""
        return self.by_tokens

    def one(self, logits: torch.Tensor, labels: torch.Tensor, given: Inputs) -> torch.Tensor:
        """The loss of one example, without the batch dimension."""
        alone = Batch({}, labels.unsqueeze(0), {name: value.unsqueeze(0) for name, value in given.items()})
        return self.of(logits.unsqueeze(0), alone)[0]

    @torch.enable_grad()
    def logit_gradients(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The gradient of each example's loss in its own logits, of the logits' shape."""
        leaf = logits.detach().requires_grad_()
        return self._slope(leaf, batch, again=False).detach()

    @torch.enable_grad()
    def logit_hessians(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The Hessian of each example's loss in its own logits, `(B, C, C)`."""
        leaf, width = logits.detach().requires_grad_(), logits[0].numel()
        slope = self._slope(leaf, batch, again=True).flatten(1)
        return torch.stack([_slope_of(slope[:, place].sum(), leaf).flatten(1) for place in range(width)], 1).detach()

    def _slope(self, leaf: torch.Tensor, batch: Batch, *, again: bool) -> torch.Tensor:
        """The gradient of the losses' sum, of which each depends on its own logits; differentiable `again` or not."""
        return _slope_of(self.of(leaf, batch).sum(), leaf, again=again)


def _slope_of(value: torch.Tensor, leaf: torch.Tensor, *, again: bool = False) -> torch.Tensor:
    """The gradient of a number, which is kept for others; zeros where it does not depend on `leaf`."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    return autograd.grad(value, leaf, retain_graph=True, create_graph=again, materialize_grads=True)[0]


@dataclass(frozen=True)
class UserLoss(ExampleLoss):
    """A user's loss: `(logits, labels)` or `(logits, labels, inputs)` to `(B,)`, or these and the mean's weights."""

    losses: Callable[..., Any]

    def of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self._call(logits, batch)[0]

    def items_of(self, batch: Batch, logits: Callable[[], torch.Tensor]) -> torch.Tensor:
        weights = self._call(logits(), batch)[1]
        return self.items(batch.labels) if weights is None else weights.detach().float()

    def counts_tokens(self, labels: torch.Tensor) -> bool:
        return _one_a_token(labels)

    def _call(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = self.losses(logits, batch.labels, *([batch.given] if _takes_inputs(self.losses) else []))
        losses, weights = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        for name, value in (("losses", losses), ("weights", weights)):
            if not isinstance(value, torch.Tensor) or value.shape != (len(logits),):
                if value is None and name == "weights":
                    continue
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(
                    f"loss= must return one loss per example, shape ({len(logits)},), or a pair of these and of the "
                    f"weights of the mean, but its {name} are {shape}; use reduction='none' and average over each "
                    "example's own items."
                )
        return losses, weights


def _takes_inputs(function: Callable[..., Any]) -> bool:
    return "inputs" in _parameters(function)


def takes_model(function: Callable[..., Any]) -> bool:
    """Whether a user's loss is `(model, batch) -> (B,)`, which its parameters' names say, and not of logits."""
    return _parameters(function)[:2] == ["model", "batch"]


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some builtins have none
        return []


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return functional.cross_entropy(
        logits, labels.view(-1), reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )


def _soft_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels.to(logits), reduction="none")


def _squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits - labels.view_as(logits).to(logits)).square().flatten(1).mean(1)


def _binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").mean(1)


def _labelled(labels: torch.Tensor) -> torch.Tensor:
    return labels != IGNORED


def _own(labels: torch.Tensor) -> torch.Tensor:
    return labels


def _next(labels: torch.Tensor) -> torch.Tensor:
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _token_items(labels: torch.Tensor) -> torch.Tensor:
    return _labelled(labels).sum(1).float()


def _next_token_items(labels: torch.Tensor) -> torch.Tensor:
    return _token_items(labels[:, 1:])


def _token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    losses = _cross_entropy(logits.flatten(0, 1), labels.flatten(), smoothing).view(labels.shape)
    return losses.sum(1) / _token_items(labels).clamp(min=1)


def _next_token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return _token_cross_entropy(logits, _next(labels), smoothing)


def _answer_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of several labels a row, each a place in its own logits `(B, kinds, T)`; places beyond them are left out."""
    inside = torch.where(labels < logits.shape[2], labels.clamp(min=0), IGNORED)
    return functional.cross_entropy(logits.transpose(1, 2), inside, reduction="none", ignore_index=IGNORED).mean(1)


def _its_output(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


CROSS_ENTROPY = ExampleLoss(_cross_entropy)
SOFT_CROSS_ENTROPY = ExampleLoss(_soft_cross_entropy)
SQUARED_ERROR = ExampleLoss(_squared_error)
BINARY_CROSS_ENTROPY = ExampleLoss(_binary_cross_entropy)
TOKEN_CROSS_ENTROPY = ExampleLoss(_token_cross_entropy, _token_items, _own, by_tokens=True)
CAUSAL_CROSS_ENTROPY = ExampleLoss(_next_token_cross_entropy, _next_token_items, _next, by_tokens=True)
ANSWER_CROSS_ENTROPY = ExampleLoss(_answer_cross_entropy)
ITS_OUTPUT = ExampleLoss(_its_output, is_output=True)


def fitting_losses(logits: torch.Tensor, labels: torch.Tensor, kinds: int = 1) -> list[ExampleLoss]:
    """The losses that logits and labels of these shapes and types can have, with so many kinds of labels a row."""
    whole = not labels.is_floating_point()
    if kinds > 1:
        return [ANSWER_CROSS_ENTROPY] if logits.ndim == 3 and whole else []
    if logits.ndim == 3 and whole and labels.shape == logits.shape[:2]:
        return [TOKEN_CROSS_ENTROPY, CAUSAL_CROSS_ENTROPY]
    if logits.ndim == 2 and whole and labels.numel() == len(logits) and logits.shape[1] > 1:
        return [CROSS_ENTROPY]
    if labels.numel() == logits.numel():
        both = logits.ndim == 2 and labels.shape == logits.shape
        return [SQUARED_ERROR, BINARY_CROSS_ENTROPY, SOFT_CROSS_ENTROPY] if both else [SQUARED_ERROR]
    return []


def smoothed(loss: ExampleLoss, smoothing: float) -> ExampleLoss:
    """The loss that the Trainer's label smoothing makes of this one."""
    if loss not in (CROSS_ENTROPY, TOKEN_CROSS_ENTROPY, CAUSAL_CROSS_ENTROPY):
        raise UnsupportedError("label_smoothing_factor is only known with a cross-entropy of classes; pass loss=.")
    losses: Callable[..., torch.Tensor] = loss.losses
    return replace(loss, losses=partial(losses, smoothing=smoothing), smoothing=smoothing)


def deviation(losses: torch.Tensor, items: torch.Tensor, figure: float, num_items: float | None = None) -> float:
    """
    How far the mean over all items lies from the loss that the model returned.

    Args:
        losses, items (`torch.Tensor`, `(B,)`): each example's loss, and how many items it is a mean over.
        figure (`float`): the loss that the model returned.
        num_items (`float`, *optional*): another count that it may have divided by.
    """
    total = float(torch.where(items > 0, losses * items, 0).cpu().double().sum())
    divisors = [float(items.sum())] + ([] if num_items is None else [float(num_items)])
    return min(abs(total / divisor - figure) for divisor in divisors)


def infer_loss(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, kinds: int = 1) -> ExampleLoss:
    """
    The per-example loss whose mean over the items is the loss that the model returned, found by computing it.

    Raises:
        `UnsupportedError`: when none gives the model's own figure, to 1 part in 1,000.
    """
    figure = float(loss)
    off = {
        candidate: deviation(candidate.losses(logits, labels), candidate.items(labels), figure)
        for candidate in fitting_losses(logits, labels, kinds)
    }
    # The nearest one: before training the losses of these tokens and of the next ones are nearly equal.
    best = min(off, key=off.__getitem__, default=None)
    if best is not None and off[best] <= 1e-6 + 1e-3 * abs(figure):
        return best
    raise UnsupportedError(
        f"The model's loss ({figure:.4g}) is not the mean of a per-example cross-entropy, squared error or "
        f"binary cross-entropy of its logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; pass "
        "loss=, a function (logits, labels, inputs) -> losses of shape (batch,), or a pair of these and of the "
        "weights of the mean; or one (model, batch) -> losses."
    )


def from_user(function: Callable[..., Any]) -> ExampleLoss:
    """
    A user's loss of logits; where there is one label a token its items are the labelled tokens, unless it returns
    weights.
    """
    return UserLoss(function, _user_items)


def _user_items(labels: torch.Tensor) -> torch.Tensor:
    return _token_items(labels) if _one_a_token(labels) else labelled_row(labels)


def _one_a_token(labels: torch.Tensor) -> bool:
    return labels.ndim == 2 and not labels.is_floating_point()
