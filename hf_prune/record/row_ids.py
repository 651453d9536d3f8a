"""Which rows a micro-batch holds: known from the batch sampler, from an id column in the batches, or from both."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainingArguments

from hf_prune._core import compat
from hf_prune._core.columns import ID_COLUMN
from hf_prune.errors import RecordingError
from hf_prune.record import support
from hf_prune.record.sampler import SamplerQueue


@dataclass(frozen=True)
class RowIds:
    """
    Args:
        column (`IdColumn`): Takes the id column out of batches that carry one.
        queue (`SamplerQueue`, *optional*): What the batch sampler yields; `None` where this process has none.
        by_position (`np.ndarray`, *optional*): The id column of the whole dataset, where it is known.
        id_column (`str`, *optional*): The column that ids are values of; `None` if they are positions.
    """

    column: IdColumn
    queue: SamplerQueue | None
    by_position: np.ndarray | None
    id_column: str | None

    @classmethod
    def find(cls, name: str | None, args: TrainingArguments, dataloader: Any) -> RowIds:
        """
        Finds out how this run identifies its rows.

        Args:
            name (`str`, *optional*): The id column that the user named.
            args (`TrainingArguments`): The Trainer's.
            dataloader (`Any`): The training dataloader as accelerate prepared it.

        Raises:
            [`RecordingError`]: if nothing does.
        """
        column = IdColumn(name or ID_COLUMN)
        queue = SamplerQueue() if support.has_sampler(dataloader) else None
        by_position = _column_values(dataloader, column.name)
        if queue is None:
            support.check_id_column(args, "Batches of a stream or of dispatch_batches=True have no sampler here")
        elif name is not None and by_position is None:
            support.check_id_column(args, f"The column {name!r} does not reach the dataloader")
        known = by_position is not None or queue is None or name is not None
        return cls(column, queue, by_position, column.name if known else None)

    def attach(self, model: nn.Module, dataloader: Any, undo: ExitStack) -> None:
        """Attaches hook and sampler proxy; `undo` gets what removes them."""
        undo.callback(self.column.attach(model).remove)
        if self.queue is not None:
            undo.callback(self.queue.attach(dataloader))

    def begin_epoch(self, skip: int) -> None:
        if self.queue is not None:
            self.queue.begin_epoch(skip)

    def begin_step(self) -> None:
        if self.queue is not None:
            self.queue.begin_step()

    def pop(self) -> tuple[list[int] | None, torch.Tensor | None]:
        """Of the micro-batch just processed, the positions from the sampler and the ids from the batch itself."""
        positions = self.queue.pop() if self.queue is not None else None
        return positions, self.column.pop()


class IdColumn:
    """
    Takes the id column out of the model's inputs, and keeps the ids of training batches.

    Args:
        name (`str`): The column's name.
    """

    def __init__(self, name: str):
        self.name = name
        self._batches: deque[torch.Tensor] = deque(maxlen=2)

    def attach(self, model: nn.Module) -> RemovableHandle:
        # torch_compile would trace the hook; the column must not become part of the graph.
        hook = compat.no_dynamo(self._take_out)
        return model.register_forward_pre_hook(hook, with_kwargs=True)

    def pop(self) -> torch.Tensor | None:
        """Ids of the micro-batch that the Trainer has just processed, on any device; `None` if it carried none."""
        batches = list(self._batches)
        self._batches.clear()
        return batches[0] if len(batches) == 1 else None

    def _take_out(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = kwargs.pop(self.name, None)
        if module.training and torch.is_grad_enabled() and ids is not None:
            self._batches.append(torch.as_tensor(ids).detach().reshape(-1))
        return args, kwargs


def _column_values(dataloader: Any, name: str) -> np.ndarray | None:
    """The id column of a map-style `datasets.Dataset` as it reaches the dataloader, or `None` without one."""
    dataset = compat.base_dataloader(dataloader).dataset
    if not isinstance(dataset, Dataset) or name not in dataset.column_names:
        return None
    column = dataset.select_columns([name]).with_format("arrow")[:].column(name)
    values = column.to_numpy()
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        wrong = f"holds {column.type}"
    elif column.null_count or not np.isfinite(values).all() or (values != np.floor(values)).any():
        wrong = "has missing values or fractions"
    elif (abs(values) >= 2.0**63).any():
        wrong = "has numbers from 2**63 on"
    elif len(np.unique(values)) != len(values):
        wrong = "holds a value more than once"
    else:
        return values.astype(np.int64)
    raise RecordingError(
        f"The id column {name!r} {wrong}, and rows are recorded by whole numbers, each its own: number them with "
        "with_example_ids(dataset), or name no id_column to record positions."
    )
