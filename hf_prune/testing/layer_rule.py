"""A layer's rule for per-example gradients against autograd."""

from __future__ import annotations

import torch
from torch import nn

from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.layer_rules import GradientSketcher, rule_for

WIDTHS = (1 << 20, 32)
"""Dimensions of the sketch: one in which every entry has its own, and one in which they share."""


def check_layer_rule(layer: nn.Module, x: torch.Tensor, *, tolerance: float = 1e-4) -> None:
    """
    Checks that the rule of a layer gives the gradient of each example.

    Args:
        layer (`nn.Module`):
            A layer with parameters, on the CPU and in float32. It is put into eval mode.
        x (`torch.Tensor`):
            Its input, a batch of at least two examples.
        tolerance (`float`, *optional*, defaults to 1e-4):
            Relative error that passes.

    Raises:
        `AssertionError`: if there is no rule, or it gives something else.
    """
    rule, kind = rule_for(layer.eval()), type(layer).__name__
    if rule is None:
        raise AssertionError(f"{kind} has no rule: add a function, and its line in RULES.")
    named = dict(layer.named_parameters(recurse=False))
    places = {name: place for place, name in enumerate(named)}
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(layer(x).shape, generator=generator)
    gradients = torch.stack([_gradient(layer, x[i : i + 1], d[i : i + 1]) for i in range(len(x))])
    scales = [torch.rand(parameter.numel(), generator=generator) for parameter in named.values()]
    for width in WIDTHS:
        sketch = CountSketch([tuple(p.shape) for p in named.values()], width, seed=0, device=torch.device("cpu"))
        scaled, unscaled = torch.zeros(2, len(x), sketch.width)
        with torch.no_grad():
            rule(layer, x, d.clone(), places, GradientSketcher(sketch, list(scales), scaled, unscaled))
        for found, factors in ((scaled, scales), (unscaled, [None] * len(scales))):
            truth = sketch.sketch(gradients, factors)
            errors = (found - truth).norm(dim=1) / truth.norm(dim=1)
            if not float(errors.max()) <= tolerance:
                raise AssertionError(
                    f"The rule of {kind} is not its gradient: example {int(errors.argmax())} of {len(x)} differs from "
                    f"autograd by {float(errors.max()):.1e} of its length, and {tolerance:.0e} is allowed."
                )


def _gradient(layer: nn.Module, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The gradient `(p,)` of one example."""
    parameters = list(layer.parameters(recurse=False))
    return torch.cat([g.flatten() for g in torch.autograd.grad((layer(x) * d).sum(), parameters)])
