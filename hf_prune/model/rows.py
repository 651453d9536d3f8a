"""From rows of a Dataset to batches on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List
from datasets.utils import tqdm
from torch import nn

from hf_prune._core.columns import PACKED
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.chance import Chance
from hf_prune.model.end_to_end import lies_end_to_end, under_each_other
from hf_prune.model.forward import Forward
from hf_prune.model.objective import accepted_inputs, required_inputs
from hf_prune.model.sequences import by_row
from hf_prune.trajectory.manifest import Manifest

LABELS = ("labels", "label", "label_ids")
# The order in which the collator that pads with the Trainer's tokenizer takes a column for the labels.
LABELS_WITH_TOKENIZER = ("label_ids", "label", "labels")


class Rows:
    """
    Collates rows of a dataset into a [`Batch`] as the Trainer did.

    Args:
        dataset (`Dataset`): The rows.
        model (`nn.Module`): Decides which columns are inputs, and their device and precision.
        data_collator (`Callable`, *optional*): As given to the Trainer. By default rows are stacked.
        manifest (`Manifest`, *optional*):
            Of the run: how the Trainer's own tokenizer padded, which columns it left out, and what are labels.
        forward (`Forward`, *optional*): What is made of the model's outputs; by default its logits.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: nn.Module,
        data_collator: Callable[..., Any] | None = None,
        manifest: Manifest | None = None,
        forward: Forward | None = None,
    ):
        first = next(p for p in model.parameters() if p.is_floating_point())
        self.device, self.dtype = first.device, first.dtype
        self.label_names = label_names(manifest)
        self.accepted = accepted_inputs(model) | set(manifest.inputs or () if manifest else ())
        self.required = required_inputs(model)
        self.recorded = set(manifest.dataset_columns) if manifest else set()
        self.model, self.forward = model, forward or Forward()
        self.keeps_columns = manifest is not None and not manifest.remove_unused_columns
        with_tokenizer = manifest is not None and manifest.collator == "DataCollatorWithPadding"
        self.order = LABELS_WITH_TOKENIZER if with_tokenizer and data_collator is None else LABELS
        self.masks = "attention_mask" in self.accepted
        self.collator, self.padding = data_collator, manifest.padding if manifest else None
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

    def of(self, dataset: Dataset, data_collator: Callable[..., Any] | None = None) -> Rows:
        """The rows of another dataset, collated in the same way or by another collator."""
        other = copy.copy(self)
        other.collator = data_collator or self.collator
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
        rows = [{name: value for name, value in row.items() if self._reaches_collator(name)} for row in found]
        if not rows or not rows[0]:
            raise ValueError(
                f"None of the dataset's columns {sorted(found[0]) if found else []} is an input of {self.name}, which "
                f"takes {sorted(self.accepted)}; apply the same preprocessing as for training."
            )
        tensors = self._tensors(rows)
        if self.forward.takes_all:
            return self._whole(tensors, rows)
        self._check_first_dimension(tensors, len(rows))
        named, labels = self._labels(tensors)
        taken = {*self.label_names, *LABELS}
        others = {n: value for n, value in tensors.items() if n not in taken and value.shape[:1] == (len(rows),)}
        inputs = {name: value for name, value in others.items() if name in self.accepted}
        inputs |= {name: value for name, value in named.items() if name in self.required}
        return Batch(inputs, labels, {name: value for name, value in others.items() if name not in self.accepted})

    def _tensors(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        columns = self._stacked(rows) if self.collator is None else dict(self.collator(rows))
        if self.collator is not None and lies_end_to_end(columns):
            columns = under_each_other([dict(self.collator([row])) for row in rows])
        return {name: self._place(value) for name, value in columns.items() if isinstance(value, torch.Tensor)}

    def _whole(self, tensors: dict[str, torch.Tensor], rows: list[dict[str, Any]]) -> Batch:
        """All that the collator made, for a loss that is computed of it; labels, if there are any, are among it."""
        count = len(rows)
        several = any(value.ndim > 0 and len(value) > count for value in tensors.values())
        tensors = by_row(tensors, count, self._tensors(rows[:1])) if several else tensors
        inputs = {name: value for name, value in tensors.items() if value.shape[:1] == (count,)}
        return Batch(self.forward.complete(self.model, inputs), torch.zeros(count, device=self.device))

    def _labels(self, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The labels by the names that the model knows them by, and as one tensor."""
        named = {name: tensors[name] for name in self.label_names if name in tensors}
        if not set(self.label_names) <= set(LABELS) and len(named) == len(self.label_names):
            return named, torch.stack(list(named.values()), 1) if len(named) > 1 else next(iter(named.values()))
        found = next((tensors[name] for name in self.order if name in tensors), None)
        if found is None:
            raise ValueError(
                f"There are no labels in the batch ({', '.join(dict.fromkeys((*self.label_names, *LABELS)))}); keep "
                "the label column, or pass the data_collator that makes them."
            )
        return {self.label_names[0]: found}, found

    def _check_first_dimension(self, tensors: dict[str, torch.Tensor], rows: int) -> None:
        known = {name: value for name, value in tensors.items() if name in {*self.accepted, *self.label_names}}
        for name, value in known.items():
            if value.ndim == 0 or len(value) != rows:
                raise ValueError(
                    f"The batch of {rows} rows has {name!r} of shape {tuple(value.shape)}, so rows cannot be told "
                    "apart; pass a data_collator that makes one sequence of each row, or one that lays them end to "
                    "end and returns position_ids."
                )

    def _reaches_collator(self, column: str) -> bool:
        """Whether the Trainer's removal of unused columns leaves this one."""
        known = column in self.recorded or column in self.accepted
        return self.keeps_columns or known or column in LABELS or column in self.label_names

    def _formatted(self, dataset: Dataset) -> Dataset:
        if self.collator is not None or dataset.format["type"] is not None:
            return dataset
        names = [name for name in dataset.column_names if self._reaches_collator(name)]
        # datasets makes lists of lists to arrays entry by entry
        nested = any(isinstance(getattr(dataset.features[name], "feature", None), List) for name in names)
        return dataset.with_format(None if nested else "numpy", columns=names)

    def _place(self, value: Any) -> torch.Tensor:
        tensor = torch.as_tensor(value)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _stacked(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if PACKED in rows[0]:
            raise ValueError(
                f"Rows were packed of several ({PACKED!r}), and only the Trainer's own collator keeps these apart: "
                "pass data_collator=trainer.data_collator, or the trainer in place of the dataset."
            )
        arrays = {name: _of_one_type([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        arrays = {name: values for name, values in arrays.items() if values[0].dtype.kind in "biuf"}  # not texts
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
        fill = {"input_ids": self.padding["token"] or 0} | dict.fromkeys((*LABELS, *self.label_names), IGNORED)
        width = max(len(value) for value in values)
        left = self.padding["side"] == "left"
        gaps = [(width - len(value), 0) if left else (0, width - len(value)) for value in values]
        return [np.pad(v, gap, constant_values=fill.get(name, 0)) for v, gap in zip(values, gaps, strict=True)]


def _of_one_type(values: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays, of which empty ones take the type of the others."""
    kind = next((value.dtype for value in values if value.size), np.dtype(np.int64))
    return [value if value.size else value.astype(kind) for value in values]


def label_names(manifest: Manifest | None) -> tuple[str, ...]:
    """The names under which the model was given labels, or would have been where the Trainer kept them from it."""
    if manifest is None:
        return ("labels",)
    return tuple(name for name in manifest.label_names if name in (manifest.inputs or ())) or manifest.label_names
