"""All that a new optimizer takes: this file would stand in hf_prune/optimizers/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hf_prune.optimizers import GroupLayout, OptimizerAdjoint, adjoint_of


class Averaged(torch.optim.Optimizer):
    """Goes along a running mean of the gradients: `m <- b m + (1 - b) g`, `theta <- theta - h m`."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.8):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad, 1 - group["beta"])
                    p.sub_(group["lr"] * mean)


@adjoint_of(Averaged)
@dataclass
class AveragedAdjoint(OptimizerAdjoint):
    """`m' = M - h A`; the cotangent of the gradient is `(1 - b) m'`, and `M <- b m'`."""

    hyper_parameters = ("beta",)

    beta: torch.Tensor
    layout: GroupLayout

    @classmethod
    def from_groups(cls, name: str, groups: list[dict[str, Any]], layout: GroupLayout) -> AveragedAdjoint:
        return cls(layout.spread([group["beta"] for group in groups]), layout)

    def start(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return queries, torch.zeros_like(queries)

    def step_adjoint_(
        self,
        A: torch.Tensor,
        M: torch.Tensor,
        learning_rates: tuple[float, ...],
        denominator: torch.Tensor | None,
        updates: int,
    ) -> torch.Tensor:
        beta = self.beta.to(A)
        M.sub_(A * self.layout.spread(list(learning_rates)).to(A))
        C = M * (1 - beta)
        M.mul_(beta)
        return C
