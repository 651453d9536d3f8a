"""The weight that each visit's loss really had in the step's objective, from what the Trainer was observed to do."""

from __future__ import annotations

import torch

from hf_prune.errors import UnsupportedError
from hf_prune.trajectory.trajectory import Step


def visit_weights(step: Step, items: torch.Tensor, uses_items: bool, own_loss: bool) -> torch.Tensor:
    """
    The weight `(B,)` of each visit's example loss (a mean over its items) in the objective of `step`.

    With s the measured factor of a micro-batch's loss and n_i the items of a visit, the weight is `s n_i / N` where
    the model divided by the Trainer's `num_items_in_batch` N, and `s n_i / (the micro-batch's items)` where not.

    Args:
        items (`torch.Tensor`, `(B,)`): items of each visit, in the order of `step.ids`.
        uses_items (`bool`): whether the model's loss divides by `num_items_in_batch`.
        own_loss (`bool`): whether the user gave `loss=`; a loss that was not the model's is taken as the
            mean over the step's items.
    """
    weights = torch.empty_like(items)
    start = 0
    for micro in step.micro_batches:
        part = slice(start, start + len(micro.ids))
        start = part.stop
        if micro.scale is None:
            if not own_loss:
                raise UnsupportedError(
                    "The run was trained on another loss than the one its model returns (label smoothing or "
                    "compute_loss_func); pass loss=, a function (logits, labels) -> losses of shape (batch,)."
                )
            weights[part] = items[part] / items.sum()
        elif uses_items and micro.num_items is not None:
            weights[part] = micro.scale * items[part] / micro.num_items
        else:
            weights[part] = micro.scale * items[part] / items[part].sum()
    return weights
