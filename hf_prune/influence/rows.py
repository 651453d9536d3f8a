"""Rows of a Dataset to batches on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from hf_prune.influence.objective import Batch, accepted_inputs

LABELS = ("labels", "label", "label_ids")


class Rows:
    """
    Collates rows of a dataset into a [`Batch`] as the Trainer would.

    Args:
        dataset (`Dataset`): the rows; columns that the model's forward does not take are left out.
        model (`nn.Module`): decides which columns are inputs, and the padding token.
        data_collator (`Callable`, *optional*): as given to the Trainer; by default rows are stacked, and token
            sequences of unequal length padded on the right.
    """

    def __init__(self, dataset: Dataset, model: nn.Module, data_collator: Callable[..., Any] | None = None):
        accepted = accepted_inputs(model)
        columns = [name for name in dataset.column_names if name in accepted or name in LABELS]
        if not any(name in LABELS for name in columns):
            raise ValueError(f"The dataset has no label column; it needs one of {', '.join(LABELS)}.")
        if len(columns) < 2:
            raise ValueError(
                f"None of the dataset's columns {dataset.column_names} is an input of {type(model).__name__}, which "
                f"takes {sorted(accepted)}; apply the same preprocessing as for training."
            )
        self.columns = columns
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.collator = data_collator
        keep_format = data_collator is not None or dataset.format["type"] is not None
        selected = dataset if dataset.format["type"] == "custom" else dataset.select_columns(columns)
        self.dataset = selected if keep_format else selected.with_format("numpy")
        self.padding = {"input_ids": padding_token(model), "labels": -100}

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, indices: Sequence[int]) -> Rows:
        """Some of the rows, collated in the same way."""
        part = copy.copy(self)
        part.dataset = self.dataset.select(indices)
        return part

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows at `indices`, in that order, duplicates kept."""
        return self.collate(self.dataset.__getitems__([int(i) for i in indices]))

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        if self.collator is not None:
            columns = dict(self.collator([{name: row[name] for name in row if name in self.columns} for row in rows]))
        else:
            columns = {name: self._stack(name, [row[name] for row in rows]) for name in self.columns}
        label = next((columns.pop(name) for name in LABELS if name in columns), None)
        if label is None:
            raise ValueError("The data collator returned no labels; score with the collator that training used.")
        return Batch({name: self._place(value) for name, value in columns.items()}, self._place(label))

    def _place(self, value: Any) -> torch.Tensor:
        tensor = torch.as_tensor(value)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _stack(self, name: str, values: list[Any]) -> torch.Tensor:
        arrays = [np.asarray(value) for value in values]
        if len({array.shape for array in arrays}) == 1:
            return torch.from_numpy(np.stack(arrays))
        if any(array.ndim != 1 for array in arrays):
            raise ValueError(f"Rows of column {name!r} differ in shape; pass the data_collator that training used.")
        width = max(len(array) for array in arrays)
        fill = self.padding.get("labels" if name in LABELS else name, 0)
        padded = [np.pad(array, (0, width - len(array)), constant_values=fill) for array in arrays]
        return torch.from_numpy(np.stack(padded))


def padding_token(model: nn.Module) -> int:
    """The padding token of a model's config, 0 where it has none."""
    config = getattr(model, "config", None)
    token = getattr(config, "pad_token_id", None)
    return 0 if token is None else int(token)
