"""Layers whose frozen weights are held in 4 or 8 bits, as bitsandbytes has them under an adapter (QLoRA)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hf_prune._core import compat


class FrozenLinear(nn.Module):
    """
    A linear layer of quantised weights, which can be differentiated in its inputs as often as is wanted.

    Its weights are those of the layer, not a copy, and are dequantised for as long as each pass through it takes.

    Args:
        layer (`nn.Module`): bitsandbytes' layer.
        decode (`Callable`): from its weights as they are held to `(out_features, in_features)`.
    """

    def __init__(self, layer: nn.Module, decode: compat.Decode):
        super().__init__()
        self.in_features, self.out_features, self.decode = layer.in_features, layer.out_features, decode
        self.weight = nn.Parameter(decode.held, requires_grad=False)
        bias = layer.bias
        self.bias = nn.Parameter(bias.detach(), requires_grad=False) if isinstance(bias, torch.Tensor) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.decode(self.weight).to(x.dtype), bias)


def replaced(model: nn.Module) -> dict[int, nn.Module]:
    """What stands in for the model's quantised layers in a deep copy of it, by their `id`: the memo of `deepcopy`."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        decode = compat.decode_of(module)
        if decode is not None:
            found[id(module)] = FrozenLinear(module, decode)
    return found
