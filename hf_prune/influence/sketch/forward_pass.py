"""One forward pass of a batch, and the sketched gradients of what is made of its logits, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch.func import vjp, vmap

from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.layer_rules import GradientSketcher
from hf_prune.influence.sketch.logit_factors import logit_factors
from hf_prune.model.batch import Batch
from hf_prune.model.losses import ExampleLoss
from hf_prune.model.objective import Objective

Inputs = dict[str, torch.Tensor]
FactorsOfScales = Sequence[torch.Tensor | None]
"""Of the entries of each parameter's gradient (flat), or `None`."""


class Owner(Protocol):
    """What made a forward pass, whose hooks give gradients to its `sketcher`."""

    objective: Objective
    sketch: CountSketch
    sketcher: GradientSketcher | None


@dataclass(frozen=True)
class FactorSketches:
    """
    The VJPs of one logit factor, sketched (see [`LogitFactor`]).

    Attributes:
        scaled, unscaled (`torch.Tensor`, `(B, d)`): the sketches, with the scales and without them.
        gradient, curvature (`torch.Tensor`, `(B,)`): the factor's coefficients.
    """

    scaled: torch.Tensor
    unscaled: torch.Tensor
    gradient: torch.Tensor
    curvature: torch.Tensor


class ForwardPass:
    """
    The outputs `(B, ...)` of one forward pass, and their VJPs.

    Args:
        owner (`Owner`): what made it.
        theta (`torch.Tensor`, `(p,)`): the parameters.
        inputs (`dict`): the batch's.
        outputs (`torch.Tensor`, *optional*): with their graph; `None` where `vmap` computes gradients.
        copies (`dict`): the copies of parameters that no hooked layer owns, by their places.
    """

    def __init__(
        self,
        owner: Owner,
        theta: torch.Tensor,
        inputs: Inputs,
        outputs: torch.Tensor | None,
        copies: dict[int, torch.Tensor],
    ):
        self._owner, self._theta, self._inputs, self._graph, self._copies = owner, theta, inputs, outputs, copies

    @cached_property
    def logits(self) -> torch.Tensor:
        """The logits `(B, ...)`."""
        if self._graph is not None:
            return self._graph.detach()
        with torch.no_grad():
            return self._owner.objective.logits(self._theta, self._inputs)

    def vjp(self, cotangents: torch.Tensor, scales: FactorsOfScales) -> torch.Tensor:
        """
        Sketches `(B, d)` of the gradients of each example's `<cotangents_i, logits_i>`.

        Args:
            cotangents (`torch.Tensor`, shape of the logits): one for each example.
            scales (`Sequence`): factors of the entries of each parameter's gradient (flat), or `None`.
        """
        return self.pull(cotangents, scales)

    def vjp_both(self, cotangents: torch.Tensor, scales: FactorsOfScales) -> tuple[torch.Tensor, torch.Tensor]:
        """The same sketches, and those of the gradients without the scales, each `(B, d)`."""
        unscaled = self._empty()
        return self.pull(cotangents, scales, unscaled), unscaled

    def loss_sketches(
        self, loss: ExampleLoss, batch: Batch, scales: FactorsOfScales
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sketches of the gradient of each example's loss, with the scales and without them, each `(B, d)`."""
        return self.vjp_both(loss.logit_gradients(self.logits, batch), scales)

    def factor_sketches(
        self, loss: ExampleLoss, batch: Batch, scales: FactorsOfScales, draws: torch.Tensor, *, curved: bool
    ) -> list[FactorSketches]:
        """
        The VJPs of the batch's logit factors.

        Args:
            draws (`torch.Tensor`): each example's random numbers, see [`logit_factors`].
            curved (`bool`): whether factors of the curvature are asked for.
        """
        factors = logit_factors(loss, self.logits, batch, draws, curved=curved)
        return [FactorSketches(*self.vjp_both(f.cotangents, scales), f.gradient, f.curvature) for f in factors]

    def pull(
        self, cotangents: torch.Tensor, scales: FactorsOfScales, unscaled: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The sketches for cotangents of the outputs; those without the scales are added to `unscaled`."""
        if self._graph is None:
            return self._by_vmap(cotangents, scales, unscaled)
        owner, sketch = self._owner, self._owner.sketch
        scaled = self._empty()
        sketcher = GradientSketcher(sketch, list(scales), scaled, unscaled)
        owner.sketcher = sketcher
        try:
            self._graph.backward(cotangents, retain_graph=True)
        finally:
            owner.sketcher = None
        for place, copy in self._copies.items():
            out, inner = sketch.signs[place]
            gradient = torch.zeros_like(copy) if copy.grad is None else copy.grad
            entries = gradient.reshape(len(copy), *sketch.shapes[place]) * out[:, None] * inner
            sketcher.add(place, slice(None), entries.flatten(1))
            copy.grad = None
        return scaled

    def _empty(self) -> torch.Tensor:
        rows = len(next(iter(self._inputs.values())))
        return torch.zeros(rows, self._owner.sketch.width, device=self._theta.device)

    def _by_vmap(
        self, cotangents: torch.Tensor, scales: FactorsOfScales, unscaled: torch.Tensor | None
    ) -> torch.Tensor:
        objective, sketch = self._owner.objective, self._owner.sketch

        def one(inputs: Inputs, cotangent: torch.Tensor) -> torch.Tensor:
            def single(theta: torch.Tensor) -> torch.Tensor:
                return objective.logits(theta, {name: value.unsqueeze(0) for name, value in inputs.items()})[0]

            return vjp(single, self._theta)[1](cotangent)[0]

        gradients = vmap(one)(self._inputs, cotangents)
        if unscaled is not None:
            unscaled += sketch.sketch(gradients, [None] * len(sketch.sizes))
        return sketch.sketch(gradients, scales)
