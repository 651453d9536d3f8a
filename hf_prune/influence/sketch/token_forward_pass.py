"""A forward pass that ends at the hidden states before a vocabulary's logits, which are made few at a time."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from hf_prune.influence.sketch.forward_pass import FactorSketches, FactorsOfScales, ForwardPass
from hf_prune.influence.sketch.layer_rules import GradientSketcher
from hf_prune.influence.sketch.token_loss import (
    Head,
    TokenFactor,
    Tokens,
    VocabularySigns,
    head_sketches,
    token_factors,
)
from hf_prune.model.batch import Batch
from hf_prune.model.losses import ExampleLoss


class TokenForwardPass(ForwardPass):
    """
    The hidden states `(B, T, d)` of one forward pass, what the head makes of them, and their VJPs.

    Args:
        head (`Head`): the values of the token head.
    """

    def __init__(self, *args: Any, head: Head):
        super().__init__(*args)
        self._head = head

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states `(B, T, d)`."""
        assert self._graph is not None
        return self._graph.detach()

    @cached_property
    def logits(self) -> torch.Tensor:
        """All the logits `(B, T, V)`: for losses that are no cross-entropy of tokens."""
        return self._head.logits(self.hidden)

    def vjp(self, cotangents: torch.Tensor, scales: FactorsOfScales) -> torch.Tensor:
        return self._of_logits(cotangents, scales, None)

    def vjp_both(self, cotangents: torch.Tensor, scales: FactorsOfScales) -> tuple[torch.Tensor, torch.Tensor]:
        unscaled = self._empty()
        return self._of_logits(cotangents, scales, unscaled), unscaled

    def _of_logits(
        self, cotangents: torch.Tensor, scales: FactorsOfScales, unscaled: torch.Tensor | None
    ) -> torch.Tensor:
        scaled = self.pull(self._head.pull(cotangents), scales, unscaled)
        self._head.add_outer(self._sketcher(scales, scaled, unscaled), cotangents, self.hidden)
        return scaled

    def loss_sketches(
        self, loss: ExampleLoss, batch: Batch, scales: FactorsOfScales
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if loss.targets(batch.labels) is None:
            return super().loss_sketches(loss, batch, scales)
        (only,) = self.factor_sketches(loss, batch, scales, batch.labels.new_zeros(0), curved=False)
        return only.scaled, only.unscaled

    def factor_sketches(
        self, loss: ExampleLoss, batch: Batch, scales: FactorsOfScales, draws: torch.Tensor, *, curved: bool
    ) -> list[FactorSketches]:
        targets = loss.targets(batch.labels)
        if targets is None:
            return super().factor_sketches(loss, batch, scales, draws, curved=curved)
        tokens = Tokens.of(self.hidden, targets, loss.smoothing)
        uniforms = draws[:, : targets.shape[1]].to(targets.device)[tokens.counted] if curved else None
        base = self._sketcher(scales, self._empty(), self._empty())
        one, nothing = torch.ones_like(tokens.items), torch.zeros_like(tokens.items)
        coefficients = [(one, nothing), (nothing, one)]
        factors = token_factors(self._head, tokens, uniforms, base)
        return [
            FactorSketches(*self._sketched(tokens, factor, scales, base), *own)
            for factor, own in zip(factors, coefficients, strict=False)
        ]

    def _sketched(
        self, tokens: Tokens, factor: TokenFactor, scales: FactorsOfScales, base: GradientSketcher
    ) -> tuple[torch.Tensor, torch.Tensor]:
        unscaled = self._empty()
        scaled = self.pull(tokens.spread(factor.along), scales, unscaled)
        if self._head.places:
            assert base.unscaled is not None
            own = base.scaled.clone(), base.unscaled.clone()
            head_sketches(self._head, tokens, factor, self._sketcher(scales, *own))
            scaled += own[0]
            unscaled += own[1]
        return scaled, unscaled

    def sum_sketches(
        self, vocabulary: VocabularySigns, signs: torch.Tensor, counted: torch.Tensor, scales: FactorsOfScales
    ) -> torch.Tensor:
        """
        Sketches `(B, d)` of the gradients of a signed sum of each example's logits.

        Args:
            signs (`torch.Tensor`, `(B, T, groups)`): those of each token.
            counted (`torch.Tensor`, `(B, T)`): the tokens that count.
        """
        head = self._head
        signs = signs.float() * counted[..., None]
        scaled = self.pull(signs @ vocabulary.projected(head.weight), scales)
        if head.places:
            sketcher = self._sketcher(scales, scaled, None)
            for example, (own, states) in enumerate(zip(signs, self.hidden, strict=True)):
                weight = (own.T @ states)[vocabulary.group].mul_(vocabulary.own[:, None])
                head.add_dense(sketcher.example(example), weight, vocabulary.whole(own.sum(0)))
        return scaled

    @property
    def vocabulary(self) -> int:
        """The number V of classes."""
        return len(self._head.weight)

    def _sketcher(
        self, scales: FactorsOfScales, scaled: torch.Tensor, unscaled: torch.Tensor | None
    ) -> GradientSketcher:
        return GradientSketcher(self._owner.sketch, list(scales), scaled, unscaled)
