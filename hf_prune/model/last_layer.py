"""The linear layer that gives a model its logits, and what enters it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Found = tuple[nn.Linear, torch.Tensor, torch.Tensor]


class _ReachedError(Exception):
    """Ends a forward pass at a layer."""

    def __init__(self, inputs: torch.Tensor):
        super().__init__("the layer was reached")
        self.inputs = inputs


def _stop(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    raise _ReachedError(given[0])


def inputs_of(layer: nn.Module, run: Callable[[], Any]) -> torch.Tensor | None:
    """What enters the layer where `run()` calls the model; the pass ends there. `None` where it is not reached."""
    handle = layer.register_forward_pre_hook(_stop)
    try:
        run()
    except _ReachedError as reached:
        return reached.inputs
    finally:
        handle.remove()
    return None


@torch.no_grad()
def last_linear(model: nn.Module, run: Callable[[], torch.Tensor]) -> Found | None:
    """
    The last linear layer of the model that `run() -> logits` calls, its inputs `(B, ..., d)` and the logits
    `(B, ..., C)`; `None` where these are not what that layer gives.

    Heads that take one position's logits (GPT-2's and Llama's for sequences) have the inputs at that position.
    """
    caught: list[Found] = []

    def keep(module: nn.Linear, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        caught[:] = [(module, given[0].detach(), output.detach())]

    handles = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        logits = run()
    finally:
        for handle in handles:
            handle.remove()
    if not caught:
        return None
    layer, given, output = caught[0]
    found = _aligned(given, output, logits)
    return None if found is None else (layer, found, logits)


def _aligned(given: torch.Tensor, output: torch.Tensor, logits: torch.Tensor) -> torch.Tensor | None:
    """The layer's inputs where its outputs are the logits, `(B, ..., d)`; None where they are not."""
    if output.shape == logits.shape:
        return given if torch.equal(output, logits) else None
    if output.ndim != 3 or logits.shape != (output.shape[0], output.shape[2]):
        return None
    same = (output == logits[:, None]).all(dim=2)
    return given[torch.arange(len(given)), same.int().argmax(dim=1)] if bool(same.any(dim=1).all()) else None
