"""Each layer's per-example gradient, from its input and the gradient of its output, straight into the sketch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from hf_prune.influence.sketch.count_sketch import CountSketch


@dataclass
class GradientSketcher:
    """
    Adds up the sketches of per-example gradients, layer by layer.

    Attributes:
        sketch (`CountSketch`): the map from gradients to sketches.
        scales (`list[torch.Tensor | None]`): per parameter, a factor for each entry (flat), or none.
        scaled (`torch.Tensor`, `(B, d)`): sketches of the gradients times their scales.
        unscaled (`torch.Tensor`, `(B, d)`, *optional*): sketches of the gradients as they are.
    """

    sketch: CountSketch
    scales: list[torch.Tensor | None]
    scaled: torch.Tensor
    unscaled: torch.Tensor | None

    def example(self, number: int) -> GradientSketcher:
        """What adds to one example's sketches alone."""
        own = slice(number, number + 1)
        unscaled = None if self.unscaled is None else self.unscaled[own]
        return GradientSketcher(self.sketch, self.scales, self.scaled[own], unscaled)

    def add(self, place: int, examples: slice, signed: torch.Tensor) -> None:
        """Adds entries `(c, size)` of parameter `place`, signs on them; they may be overwritten."""
        self._add(place, examples, signed, self.scales[place])

    def _add(self, place: int, examples: slice, signed: torch.Tensor, scale: torch.Tensor | None) -> None:
        part = self.sketch.parts[place]
        if self.unscaled is not None:
            self.unscaled[examples, part] += self.sketch.fold(place, signed)
        if scale is not None:
            signed = signed.mul_(scale)
        self.scaled[examples, part] += self.sketch.fold(place, signed)

    def add_outer(self, place: int, left: torch.Tensor, right: torch.Tensor) -> None:
        """Adds `sum_t left_t right_t^T` for each example; left `(B, T, rows)`, right `(B, T, columns)`."""
        out, inner = (signs.to(left.dtype) for signs in self.sketch.signs[place])
        left, right = (left * out).transpose(1, 2), right * inner
        rows, columns = left.shape[1], right.shape[2]
        each = max(1, self.sketch.chunk // (rows * columns))
        scale = self.scales[place]
        scale = None if scale is None else scale.to(left.dtype)
        for start in range(0, len(left), each):
            examples = slice(start, min(start + each, len(left)))
            count = examples.stop - start
            buffer = self.sketch.buffer.view(left.dtype)[: count * rows * columns]
            torch.bmm(left[examples], right[examples], out=buffer.view(count, rows, columns))
            self._add(place, examples, buffer.view(count, -1), scale)

    def add_vector(self, place: int, entries: torch.Tensor) -> None:
        """Adds entries `(B, size)` of a parameter that is a vector."""
        self.add(place, slice(None), entries.float() * self.sketch.signs[place][0])

    def add_rows(self, place: int, ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Adds `rows (B, T, columns)` at the parameter's rows `ids (B, T)`."""
        out, inner = self.sketch.signs[place]
        columns, m = rows.shape[2], self.sketch.sizes[place]
        signed = rows * out[ids][..., None] * inner
        entries = ids[..., None] * columns + torch.arange(columns, device=ids.device)
        buckets, part = (entries % m).flatten(1), self.sketch.parts[place]
        if self.unscaled is not None:
            self.unscaled[:, part].scatter_add_(1, buckets, signed.flatten(1))
        scale = self.scales[place]
        if scale is not None:
            signed *= scale.view(-1, columns)[ids]
        self.scaled[:, part].scatter_add_(1, buckets, signed.flatten(1))


# What a layer does with its input x, the gradient d of its output, and the places of its parameters by name.
Rule = Callable[[nn.Module, torch.Tensor, torch.Tensor, dict[str, int], GradientSketcher], None]


def _linear(
    module: nn.Module, x: torch.Tensor, d: torch.Tensor, places: dict[str, int], sketcher: GradientSketcher
) -> None:
    x, d = x.flatten(1, -2) if x.ndim > 2 else x[:, None], d.flatten(1, -2) if d.ndim > 2 else d[:, None]
    x = x.to(d.dtype)  # of a layer under autocast only the output is in half precision
    if "weight" in places:
        left, right = (x, d) if isinstance(module, Conv1D) else (d, x)
        sketcher.add_outer(places["weight"], left, right)
    if "bias" in places:
        sketcher.add_vector(places["bias"], d.sum(1))


def _convolution(
    module: nn.Module, x: torch.Tensor, d: torch.Tensor, places: dict[str, int], sketcher: GradientSketcher
) -> None:
    assert isinstance(module, nn.Conv2d)
    if "bias" in places:
        sketcher.add_vector(places["bias"], d.flatten(2).sum(2))
    if "weight" not in places:
        return
    if isinstance(module.padding, str):
        raise ValueError("padding given as a word")  # left to vmap
    patches = functional.unfold(x.to(d.dtype), module.kernel_size, module.dilation, module.padding, module.stride)
    groups = module.groups
    left = d.flatten(2).view(len(d), groups, -1, d.flatten(2).shape[2])
    right = patches.view(len(x), groups, -1, patches.shape[2])
    if groups == 1:
        sketcher.add_outer(places["weight"], left[:, 0].transpose(1, 2), right[:, 0].transpose(1, 2))
        return
    gradients = torch.einsum("bgol,bgil->bgoi", left, right).flatten(1, 2)
    out, inner = sketcher.sketch.signs[places["weight"]]
    sketcher.add(places["weight"], slice(None), (gradients.float() * out[:, None] * inner).flatten(1))


def _layer_norm(
    module: nn.Module, x: torch.Tensor, d: torch.Tensor, places: dict[str, int], sketcher: GradientSketcher
) -> None:
    assert isinstance(module, nn.LayerNorm)
    if x.shape[-1] != module.normalized_shape[-1]:  # channels first
        x, d = x.movedim(1, -1), d.movedim(1, -1)
    normed = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    for name, entries in (("weight", d * normed), ("bias", d)):
        if name in places:
            sketcher.add_vector(places[name], entries.reshape(len(x), -1, x.shape[-1]).sum(1))


def _group_norm(
    module: nn.Module, x: torch.Tensor, d: torch.Tensor, places: dict[str, int], sketcher: GradientSketcher
) -> None:
    assert isinstance(module, nn.GroupNorm)
    _channels(functional.group_norm(x, module.num_groups, eps=module.eps), d, places, sketcher)


def _batch_norm(
    module: nn.Module, x: torch.Tensor, d: torch.Tensor, places: dict[str, int], sketcher: GradientSketcher
) -> None:
    assert isinstance(module, nn.BatchNorm2d)
    normed = functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
    _channels(normed, d, places, sketcher)


def _channels(normed: torch.Tensor, d: torch.Tensor, places: dict[str, int], sketcher: GradientSketcher) -> None:
    for name, entries in (("weight", d * normed), ("bias", d)):
        if name in places:
            sketcher.add_vector(places[name], entries.flatten(2).sum(2))


def _embedding(
    module: nn.Module, x: torch.Tensor, d: torch.Tensor, places: dict[str, int], sketcher: GradientSketcher
) -> None:
    assert isinstance(module, nn.Embedding)
    ids = x.expand(d.shape[:-1]).reshape(len(d), -1)
    if module.padding_idx is not None:
        d = d * (x != module.padding_idx)[..., None]
    sketcher.add_rows(places["weight"], ids, d.reshape(len(d), ids.shape[1], -1))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    Conv1D: _linear,
    nn.Conv2d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Embedding: _embedding,
}


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a layer, or `None`. What a subclass does differently shows when gradients are compared."""
    return next((rule for kind, rule in RULES.items() if isinstance(module, kind)), None)
