"""The adjoint of Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch

from hf_prune.optimizers.adjoint import OptimizerAdjoint, adjoint_of
from hf_prune.optimizers.layout import GroupLayout


@adjoint_of(torch.optim.AdamW, torch.optim.Adam)
@dataclass
class Adam(OptimizerAdjoint):
    """
    The update, with learning rate h and update count n (from 1), and its adjoint:

        d = g (+ w theta if coupled)                                     C = (1 - b1) m'
        m <- b1 m + (1 - b1) d                                           m' = M - h A / (denominator (1 - b1^n))
        theta <- (1 - h w if decoupled) theta
                 - h m / ((1 - b1^n) (sqrt(v / (1 - b2^n)) + eps))

    then `A <- (1 - h w) A + H C` (decoupled) or `A <- A + w C + H C`, and `M <- b1 m'`. So far v is held at its
    recorded values. Where vectors of the parameters' length are swept over few steps, its own cotangent V is followed
    too: with u the update that h multiplies and s = sqrt(v / (1 - b2^n)),

        v <- b2 v + (1 - b2) d^2           C <- C + 2 (1 - b2) d v',   v' = V + A h u / (2 s (1 - b2^n) denominator)

    and `V <- b2 v'`. With amsgrad the recorded moment is the largest so far, and stays held.
    """

    hyper_parameters = ("betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay")
    has_second_moment = True

    beta1: torch.Tensor
    beta2: torch.Tensor
    eps: torch.Tensor
    weight_decay: torch.Tensor
    decoupled: bool
    held: bool
    layout: GroupLayout

    @classmethod
    def from_groups(cls, name: str, groups: list[dict[str, Any]], layout: GroupLayout) -> Self:
        betas = [group["betas"] for group in groups]
        if not all(len(pair) == 2 and 0 <= min(pair) <= max(pair) < 1 for pair in betas):
            raise ValueError("betas are not two numbers in [0, 1)")
        if any(group["eps"] < 0 for group in groups):
            raise ValueError("eps is negative")
        beta1, beta2 = (layout.spread([pair[place] for pair in betas]) for place in (0, 1))
        eps = layout.spread([group["eps"] for group in groups])
        weight_decay = layout.spread([group["weight_decay"] for group in groups])
        decoupled = name == "AdamW" or all(group.get("decoupled_weight_decay", False) for group in groups)
        held = any(group.get("amsgrad", False) for group in groups)
        return cls(beta1, beta2, eps, weight_decay, decoupled, held, layout)

    def start(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The cotangents of parameters and first moment at the end of the run, each `(k, p)`."""
        return queries, torch.zeros_like(queries)

    def step_adjoint_(
        self,
        A: torch.Tensor,
        M: torch.Tensor,
        learning_rates: tuple[float, ...],
        denominator: torch.Tensor | None,
        updates: int,
    ) -> torch.Tensor:
        """
        The cotangent `(k, p)` of the step's gradient; leaves in `M` the moment's cotangent of the step before.

        Without `denominator`, `A` and `M` are those of parameters and gradients already scaled by its square root.
        """
        beta1 = self.beta1.to(A)
        rate = self.layout.spread(list(learning_rates)).to(A) / (1 - beta1 ** (updates + 1))
        M.addcmul_(A, (rate if denominator is None else rate / denominator).to(A), value=-1.0)
        C = M * (1 - beta1)
        M.mul_(beta1)
        return C

    @property
    def follows_second_moment(self) -> bool:
        return not self.held

    def direction(self, moved: torch.Tensor, steps: Iterable[tuple[tuple[float, ...], torch.Tensor]]) -> torch.Tensor:
        rates = torch.zeros_like(moved)
        for learning_rates, theta in steps:
            rate = self.layout.spread(list(learning_rates)).to(moved)
            rates += rate
            if self.decoupled:
                moved = moved - rate * self.weight_decay.to(moved) * theta
        return torch.where(rates > 0, moved / rates, 0.0)

    def second_moment_adjoint_(
        self,
        A: torch.Tensor,
        V: torch.Tensor,
        learning_rates: tuple[float, ...],
        denominator: torch.Tensor,
        updates: int,
        *,
        direction: torch.Tensor,
        gradient: torch.Tensor,
        theta: torch.Tensor,
    ) -> torch.Tensor:
        beta2, rate = self.beta2.to(A), self.layout.spread(list(learning_rates)).to(A)
        correction = 1 - beta2 ** (updates + 1)
        root = denominator - self.eps.to(A)
        slope = rate * direction / (2 * root * correction * denominator)
        V.addcmul_(A, torch.where(root > 0, slope, 0.0))
        d = gradient if self.decoupled else gradient + self.weight_decay.to(A) * theta
        added = V * (2 * (1 - beta2) * d)
        V.mul_(beta2)
        return added

    def decay_adjoint_(self, A: torch.Tensor, C: torch.Tensor, learning_rates: tuple[float, ...]) -> None:
        """Takes `A` through the update itself (weight decay); the curvature term is added by the sweep."""
        if not self.weight_decay.any():
            return
        if self.decoupled:
            A.mul_((1 - self.layout.spread(list(learning_rates)) * self.weight_decay).to(A))
        else:
            A.add_(C * self.weight_decay.to(A))

    @property
    def decays_before_scaling(self) -> bool:
        return not self.decoupled and bool(self.weight_decay.any())

    @classmethod
    def describe(cls, name: str, group: dict[str, Any]) -> dict[str, Any]:
        # older versions of torch know AdamW by its class alone
        return {"decoupled_weight_decay": name == "AdamW"} | super().describe(name, group)

    @classmethod
    def denominator(
        cls, groups: list[dict[str, Any]], layout: GroupLayout, second_moment: torch.Tensor, updates: int
    ) -> torch.Tensor:
        """`sqrt(v / (1 - b2^n)) + eps`, with n = `updates` + 1."""
        beta2 = layout.spread([group["betas"][1] for group in groups]).to(second_moment)
        eps = layout.spread([group["eps"] for group in groups]).to(second_moment)
        return (second_moment / (1 - beta2 ** (updates + 1))).sqrt_().add_(eps)
