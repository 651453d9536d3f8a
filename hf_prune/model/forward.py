"""What the model makes of a row that its loss is a function of: logits, the scores of a pair, or the loss itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_prune.errors import UnsupportedError
from hf_prune.model.outputs import logits_in

Inputs = dict[str, torch.Tensor]


class Forward:
    """
    The logits of each row, as the model returns them.

    Attributes:
        takes_all (`bool`): whether it is given all that the collator made, and rows may be of several sequences.
    """

    takes_all = False

    def __call__(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        """What `(B, ...)` the model makes of each row."""
        return logits_of(model(**inputs))

    def complete(self, model: nn.Module, inputs: Inputs) -> Inputs:
        """What belongs to a collated batch and does not depend on the recorded parameters, added to it."""
        return inputs


class OfLoss(Forward):
    """
    The loss of each row `(B, 1)`, by a user's function.

    Args:
        function (`Callable`): `(model, batch) -> (B,)`.
    """

    takes_all = True

    def __init__(self, function: Callable[[nn.Module, Inputs], torch.Tensor]):
        self.function = function

    def __call__(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        rows = len(next(iter(inputs.values())))
        losses = self.function(model, inputs)
        if not isinstance(losses, torch.Tensor) or losses.shape != (rows,):
            shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise ValueError(
                f"loss= must return one loss per example, shape ({rows},), but it returned {shape}; use "
                "reduction='none' and average over each example's own items."
            )
        return losses[:, None]


class Applied(nn.Module):
    """
    A model and what is made of its outputs, as one module: `functional_call` takes no function.

    Args:
        model (`nn.Module`): the model.
        forward (`Forward`): what is made of its outputs.
    """

    def __init__(self, model: nn.Module, forward: Forward):
        super().__init__()
        self.model, self.of = model, forward

    def forward(self, inputs: Inputs) -> torch.Tensor:
        return self.of(self.model, inputs)


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits, which must be there."""
    logits = logits_in(outputs)
    if logits is None:
        raise UnsupportedError(
            "The model's logits must be one tensor with the examples first: return it by the name 'logits', or in a "
            "tuple after the loss."
        )
    return logits
