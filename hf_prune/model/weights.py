"""The weight that each visit's loss really had in the step's objective, from what the Trainer was observed to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_prune.model.batch import Batch
from hf_prune.trajectory.trajectory import Step

# Where weights per item differ by less than this share in a step, they share one denominator.
EVEN = 1e-4


@dataclass(frozen=True)
class Reduction:
    """
    How one number was made of a micro-batch's losses.

    Attributes:
        whole_step (`bool`): whether their sum was divided by the items of the whole step, such as
            `num_items_in_batch`, or by those of the micro-batch.
        factor (`float`, *optional*): what the quotient was multiplied by; `None` for what was measured in each
            micro-batch as it was trained.
    """

    whole_step: bool
    factor: float | None = None

    def weights(self, step: Step, items: torch.Tensor) -> torch.Tensor:
        """
        The weight `(B,)` of each visit's example loss (a mean over its items) in the objective of `step`.

        With n_i the items of a visit and s the factor it is `s n_i / N`, N being the denominator.

        Args:
            items (`torch.Tensor`, `(B,)`): items of each visit, in the order of `step.ids`.
        """
        parts = []
        for micro, own in zip(step.micro_batches, items.split([len(m.ids) for m in step.micro_batches]), strict=True):
            factor = micro.scale if self.factor is None else self.factor
            assert factor is not None, "a factor is measured where none was recorded"
            whole = float(items.sum()) if micro.num_items is None else micro.num_items
            parts.append(factor * own / (whole if self.whole_step else own.sum().clamp(min=1e-30)))
        return torch.cat(parts)


@dataclass(frozen=True)
class WeightedBatch:
    """
    Visits of rows in one step.

    Attributes:
        rows (`np.ndarray`, `(B,)`): the rows visited.
        batch (`Batch`): the same, collated.
        weights (`torch.Tensor`, `(B,)`): the weight of each visit's loss in the step's objective.
        items (`torch.Tensor`, `(B,)`): what each visit adds to its denominator, which counts tokens; zeros where it
            counts rows, whose place another row would take.
        groups (`torch.Tensor`, `(B,)`): visits of one group share a denominator.
    """

    rows: np.ndarray
    batch: Batch
    weights: torch.Tensor
    items: torch.Tensor
    groups: torch.Tensor

    def part(self, chosen: slice | torch.Tensor, scale: float = 1.0) -> WeightedBatch:
        """Some of the visits, a slice of them or those of these numbers, with their weights times `scale`."""
        return WeightedBatch(
            self.rows[chosen],
            self.batch.part(chosen),
            self.weights[chosen] * scale,
            self.items[chosen],
            self.groups[chosen],
        )

    @property
    def growth(self) -> torch.Tensor:
        """What the weights of the others in its group are multiplied by when a visit is gone, `(B,)`."""
        total = self.same @ self.items
        rest = total - self.items
        return torch.where(rest > 0, total / rest.clamp(min=1e-30), 1.0)

    @property
    def same(self) -> torch.Tensor:
        """Whether two visits share a denominator, `(B, B)`."""
        return (self.groups[:, None] == self.groups).to(self.weights)


def denominators(step: Step, weights: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """
    The group `(B,)` of visits that each visit shares its denominator with: the whole step where the weight of an item
    is the same all over it, otherwise the micro-batch.
    """
    each = weights[items > 0] / items[items > 0]
    if not len(each) or float(each.max() - each.min()) <= EVEN * float(each.max()):
        return torch.zeros(len(items), dtype=torch.long, device=items.device)
    sizes = torch.tensor([len(micro.ids) for micro in step.micro_batches], device=items.device)
    return torch.arange(len(sizes), device=items.device).repeat_interleave(sizes)


def without(parts: Sequence[WeightedBatch], left_out: np.ndarray) -> list[torch.Tensor]:
    """The weights of a step's visits where some rows `(n,)` are left out; denominators that count tokens shrink."""
    kept = [torch.from_numpy(~left_out[part.rows]).to(part.weights) for part in parts]
    groups, items = torch.cat([part.groups for part in parts]), torch.cat([part.items for part in parts])
    count = int(groups.max()) + 1
    whole = torch.zeros(count, dtype=items.dtype, device=items.device).index_add(0, groups, items)
    left = torch.zeros_like(whole).index_add(0, groups, items * torch.cat(kept))
    growth = torch.where(left > 0, whole / left.clamp(min=1e-30), 1.0)
    return [part.weights * own * growth[part.groups] for part, own in zip(parts, kept, strict=True)]
