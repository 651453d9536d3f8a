"""What an optimizer's update divides by: the diagonal preconditioner, as a function of the recorded second moment."""

from __future__ import annotations

from typing import Any

import torch

from hf_prune.model.groups import GroupLayout


def denominator(
    optimizer: dict[str, Any], layout: GroupLayout, second_moment: torch.Tensor, updates: int
) -> torch.Tensor:
    """
    Adam's `sqrt(v / (1 - b2^n)) + eps` `(p,)` of the step after `updates` updates.

    Args:
        optimizer (`dict`): as in the manifest, with the hyper-parameters of each group.
        layout (`GroupLayout`): of the optimizer's groups over the parameters.
        second_moment (`torch.Tensor`, `(p,)`): v after the step.
        updates (`int`): n - 1.
    """
    groups = optimizer["groups"]
    beta2 = layout.spread([group["betas"][1] for group in groups]).to(second_moment)
    eps = layout.spread([group["eps"] for group in groups]).to(second_moment)
    return (second_moment / (1 - beta2 ** (updates + 1))).sqrt_().add_(eps)
