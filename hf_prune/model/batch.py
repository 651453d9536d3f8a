"""Collated rows on the model's device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

# The label of positions that no loss is taken at.
IGNORED = -100
# What tokenizers make for each token.
OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "special_tokens_mask")


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

    def lengths(self) -> torch.Tensor | None:
        """
        How far each row's tokens reach, `(B,)` on the CPU; `None` for rows that are not masked tokens, or have
        something else that might belong to tokens, such as a second text with a mask of its own.
        """
        mask = self.inputs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return None
        used = mask != 0
        if self.labels_tokens:
            used = used | (self.labels != IGNORED)
        else:
            others = [value for name, value in self.given.items() if name not in OF_TOKENS]
            if any(value.shape[:2] == mask.shape for value in (*others, self.labels)):
                return None
        return (used.cpu() * torch.arange(1, used.shape[1] + 1)).amax(1)

    def cut(self, length: int) -> Batch:
        """Rows of masked tokens without what lies on the right of so many."""
        shape = self.inputs["attention_mask"].shape

        def own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: value[:, :length] if value.shape[:2] == shape else value for name, value in tensors.items()}

        labels = self.labels[:, :length] if self.labels_tokens else self.labels
        return Batch(own(self.inputs), labels, own(self.others))

    @property
    def labels_tokens(self) -> bool:
        """Whether masked tokens have a class each."""
        mask = self.inputs.get("attention_mask")
        return mask is not None and mask.shape == self.labels.shape and not self.labels.is_floating_point()

    @property
    def given(self) -> dict[str, torch.Tensor]:
        """All that the collator made but the labels: what a user's loss gets as `inputs`."""
        return self.inputs | self.others


def _rows(tensors: dict[str, torch.Tensor], rows: slice | torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in tensors.items()}
