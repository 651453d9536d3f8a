"""The adjoint of SGD with momentum, dampening, Nesterov's form and coupled weight decay (torch.optim.SGD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hf_prune.optimizers.adjoint import OptimizerAdjoint, adjoint_of
from hf_prune.optimizers.layout import GroupLayout


@adjoint_of(torch.optim.SGD)
@dataclass
class Sgd(OptimizerAdjoint):
    """
    The update, with learning rate h, and its adjoint, that of [arXiv 1906.08473](https://hf.co/papers/1906.08473) with
    momentum added:

        d = g + w theta                        d' = (1 - damp) v' + nesterov u'
        v <- mu v + (1 - damp) d               v' = M + (mu if nesterov else 1) u'
        theta <- theta - h (d + mu v | v)      u' = -h A

    The cotangent of the gradient is d'; then `A <- A + w d' + H d'` and `M <- mu v'`.
    """

    hyper_parameters = ("weight_decay", "momentum", "dampening", "nesterov")

    momentum: torch.Tensor
    dampening: torch.Tensor
    nesterov: torch.Tensor
    weight_decay: torch.Tensor
    layout: GroupLayout

    @classmethod
    def from_groups(cls, name: str, groups: list[dict[str, Any]], layout: GroupLayout) -> Sgd:
        def spread(key: str) -> torch.Tensor:
            return layout.spread([float(group.get(key, 0.0)) for group in groups])

        return cls(spread("momentum"), spread("dampening"), spread("nesterov"), spread("weight_decay"), layout)

    def start(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The cotangents of parameters and momentum at the end of the run, each `(k, p)`."""
        return queries, torch.zeros_like(queries) if self.momentum.any() else queries.new_zeros(1)

    def step_adjoint_(
        self,
        A: torch.Tensor,
        M: torch.Tensor,
        learning_rates: tuple[float, ...],
        denominator: torch.Tensor | None,
        updates: int,
    ) -> torch.Tensor:
        """The cotangent `(k, p)` of the step's gradient; leaves in `M` the momentum's cotangent of the step before."""
        mu, damp, nesterov = (x.to(A) for x in (self.momentum, self.dampening, self.nesterov))
        u = A * -self.layout.spread(list(learning_rates)).to(A)
        if not self.momentum.any():
            return u
        v = M.add_(u * torch.where(nesterov > 0, mu, torch.ones_like(mu)))
        # torch starts the momentum buffer with the first gradient, undampened; a group without momentum has none.
        d = v * (1 - torch.where(mu > 0, damp, 0.0) if updates > 0 else 1) + u * nesterov
        M.mul_(mu)
        return d

    def decay_adjoint_(self, A: torch.Tensor, C: torch.Tensor, learning_rates: tuple[float, ...]) -> None:
        """Takes `A` through the update itself (weight decay); the curvature term is added by the sweep."""
        if self.weight_decay.any():
            A.add_(C * self.weight_decay.to(A))
