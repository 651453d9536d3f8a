"""From rows of a Dataset to batches on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.utils import tqdm
from torch import nn

from hf_prune.model.chance import Chance
from hf_prune.model.losses import IGNORED
from hf_prune.model.objective import Batch, accepted_inputs

LABELS = ("labels", "label", "label_ids")


class Rows:
    """
    Collates rows of a dataset into a [`Batch`] as the Trainer did.

    Args:
        dataset (`Dataset`): The rows; columns that the model's forward does not take are left out.
        model (`nn.Module`): Decides which columns are inputs, and their device and precision.
        data_collator (`Callable`, *optional*): As given to the Trainer. By default rows are stacked.
        padding (`dict`, *optional*):
            `side` and `token` with which the Trainer's tokenizer padded; token sequences of unequal length are padded
            so, and refused without it.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: nn.Module,
        data_collator: Callable[..., Any] | None = None,
        padding: dict[str, Any] | None = None,
    ):
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.accepted = accepted_inputs(model) | set(LABELS)
        self.masks = "attention_mask" in self.accepted
        self.collator, self.padding = data_collator, padding
        self.chance = Chance()
        self.dataset = self._formatted(dataset)
        self.name = type(model).__name__

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, indices: Sequence[int]) -> Rows:
        """Some of the rows, collated in the same way."""
        part = copy.copy(self)
        part.dataset = self.dataset.select(indices)
        return part

    def of(self, dataset: Dataset) -> Rows:
        """The rows of another dataset, collated in the same way."""
        other = copy.copy(self)
        other.dataset = self._formatted(dataset)
        return other

    def batches(self, size: int, description: str | None = None) -> Iterator[tuple[range, Batch]]:
        """
        All rows in order, in batches, each with the numbers of its rows.

        Args:
            size (`int`): rows in a batch.
            description (`str`, *optional*): what a progress bar says; by default there is none.
        """
        starts = range(0, len(self), size)
        for start in tqdm(starts, desc=description, unit="batch", disable=description is None):
            numbers = range(start, min(start + size, len(self)))
            yield numbers, self.batch(numbers)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows at `indices`, in that order, duplicates kept."""
        with self.chance.drawn(indices):
            return self._collated([int(i) for i in indices])

    def turns(self, count: int, indices: Sequence[int], batch: Batch) -> Iterator[Batch]:
        """The batch of the rows at `indices` so many times; rows that are random draw anew each time."""
        for turn in range(count):
            self.chance.turn = turn
            yield batch if turn == 0 or self.chance.number is None else self.batch(indices)
        self.chance.turn = 0

    def are_random(self) -> bool:
        """Whether rows differ when they are fetched again: augmentation, masking, or a collator that draws."""
        some = range(min(len(self), 8))
        first, *others = (self._collated(some) for _ in range(3))
        return any(not first.equals(other) for other in others)

    def _collated(self, indices: Sequence[int]) -> Batch:
        found = self.dataset.__getitems__(indices)
        # As the Trainer's removal of unused columns leaves them.
        rows = [{name: value for name, value in row.items() if name in self.accepted} for row in found]
        if not rows or not rows[0]:
            raise ValueError(
                f"None of the dataset's columns {sorted(found[0]) if found else []} is an input of {self.name}, which "
                f"takes {sorted(self.accepted)}; apply the same preprocessing as for training."
            )
        columns = self._stacked(rows) if self.collator is None else dict(self.collator(rows))
        label = next((columns.pop(name) for name in LABELS if name in columns), None)
        if label is None:
            raise ValueError(
                f"There are no labels in the batch (one of {', '.join(LABELS)}); keep the label column, or pass the "
                "data_collator that makes them."
            )
        inputs = {name: self._place(value) for name, value in columns.items() if isinstance(value, torch.Tensor)}
        return Batch(inputs, self._place(label))

    def _formatted(self, dataset: Dataset) -> Dataset:
        if self.collator is not None or dataset.format["type"] is not None:
            return dataset
        return dataset.with_format("numpy", columns=[name for name in dataset.column_names if name in self.accepted])

    def _place(self, value: Any) -> torch.Tensor:
        tensor = torch.as_tensor(value)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _stacked(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        arrays = {name: [np.asarray(row[name]) for row in rows] for name in rows[0]}
        ragged = {name for name, values in arrays.items() if len({value.shape for value in values}) > 1}
        if "input_ids" in ragged and self.masks and "attention_mask" not in arrays:
            arrays["attention_mask"] = [np.ones_like(value) for value in arrays["input_ids"]]
            ragged.add("attention_mask")
        return {
            name: torch.from_numpy(np.stack(self._padded(name, values) if name in ragged else values))
            for name, values in arrays.items()
        }

    def _padded(self, name: str, values: list[np.ndarray]) -> list[np.ndarray]:
        if self.padding is None or any(value.ndim != 1 for value in values):
            raise ValueError(
                f"Rows of column {name!r} differ in length, and the run was recorded without a tokenizer that pads "
                "them; pass the data_collator that training used."
            )
        fill = {"input_ids": self.padding["token"] or 0} | dict.fromkeys(LABELS, IGNORED)
        width = max(len(value) for value in values)
        left = self.padding["side"] == "left"
        gaps = [(width - len(value), 0) if left else (0, width - len(value)) for value in values]
        return [np.pad(v, gap, constant_values=fill.get(name, 0)) for v, gap in zip(values, gaps, strict=True)]
