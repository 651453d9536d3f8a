"""Collated rows on the model's device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Batch:
    """
    Collated rows; every tensor has the examples first.

    Attributes:
        inputs (`dict[str, torch.Tensor]`): what the model is given, without labels unless it requires them.
        labels (`torch.Tensor`): the labels; of several kinds, such as the two ends of an answer, `(B, kinds)`.
        others (`dict[str, torch.Tensor]`): what the collator made beside these, such as a column of weights.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    others: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def equals(self, other: Batch) -> bool:
        """Whether all tensors are the same."""
        left, right = (batch.given | {"": batch.labels} for batch in (self, other))
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    def part(self, rows: slice | torch.Tensor) -> Batch:
        """Some of the rows, a slice of them or those of these numbers."""
        return Batch(_rows(self.inputs, rows), self.labels[rows], _rows(self.others, rows))

    @property
    def given(self) -> dict[str, torch.Tensor]:
        """All that the collator made but the labels: what a user's loss gets as `inputs`."""
        return self.inputs | self.others


def _rows(tensors: dict[str, torch.Tensor], rows: slice | torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in tensors.items()}
