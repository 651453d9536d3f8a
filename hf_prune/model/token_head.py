"""The layer that gives a language model its logits, apart from the model: those of a vocabulary need a lot of room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hf_prune._core import compat
from hf_prune.model.batch import IGNORED

# Logits that are there at once: on a CPU few enough to stay near its cache.
AT_ONCE, AT_ONCE_ON_ACCELERATOR = 1 << 22, 1 << 26


@dataclass(frozen=True)
class TokenHead:
    """
    A linear layer whose outputs are a model's logits.

    Attributes:
        layer (`nn.Linear`): the layer.
        weight (`str`): the name of its weight `(V, d)` in the model.
        bias (`str`, *optional*): that of its bias.
    """

    layer: nn.Linear
    weight: str
    bias: str | None

    def values(self, named: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias out of the model's named parameters."""
        return named[self.weight], None if self.bias is None else named[self.bias]


def find_head(model: nn.Module, layer: nn.Module) -> TokenHead | None:
    """The head of the model that this layer is, if it is a plain one."""
    if type(layer) is not nn.Linear:
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return TokenHead(layer, names[id(layer.weight)], None if layer.bias is None else names[id(layer.bias)])


def not_half(values: torch.Tensor) -> torch.Tensor:
    """The values in at least single precision."""
    return values.float() if values.dtype.itemsize == 2 else values


def in_chunks(tokens: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of so many tokens, each with few enough of `width` logits a token."""
    size = max(1, (AT_ONCE if device.type == "cpu" else AT_ONCE_ON_ACCELERATOR) // width)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def token_losses(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """
    The cross-entropy `(B, T)` of each token, 0 where there is no target; the backward pass computes logits again.

    Args:
        hidden (`torch.Tensor`, `(B, T, d)`): what enters the head.
        targets (`torch.Tensor`, `(B, T)`): the classes, or `IGNORED`.
    """

    def of(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor:
        logits = not_half(functional.linear(hidden, weight, bias))
        return functional.cross_entropy(logits, own, reduction="none", label_smoothing=smoothing)

    chosen = targets != IGNORED
    states, classes = hidden[chosen], targets[chosen]
    parts = []
    for part in in_chunks(len(classes), len(weight), hidden.device):
        given = (states[part], weight, bias, classes[part])
        if torch.is_grad_enabled():
            parts.append(checkpoint(of, *given, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(of(*given))
    losses = torch.cat(parts) if parts else states.sum(1)
    return hidden.new_zeros(targets.shape, dtype=losses.dtype).masked_scatter(chosen, losses)


def vocabulary_of(model: nn.Module) -> int:
    """The classes of a model's token head, 0 without one."""
    weight = getattr(output_head(model), "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) else 0


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer of a Transformers model that gives the tokens' logits, also under an adapter."""
    base = compat.base_model(model)
    return base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
