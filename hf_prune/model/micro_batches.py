"""A batch in parts that the run's own memory held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from hf_prune.model.batch import Batch
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows
from hf_prune.model.token_head import vocabulary_of
from hf_prune.trajectory.trajectory import Step

# Rows in a forward pass where nobody says otherwise.
BATCH_SIZE = 32
# Tokens that are worth a pass of their own, of a CPU for each thread: with fewer, calling the layers takes the time.
ENOUGH, ENOUGH_FOR_AN_ACCELERATOR = 256, 4096


def rows_of_a_pass(batch_size: int | None, model: nn.Module, steps: Iterable[Step]) -> int:
    """
    Rows in a forward pass: those asked for, or `BATCH_SIZE`.

    Where each token has the logits of a vocabulary, no more than went through the model at once in training.
    """
    return batch_size or (min(BATCH_SIZE, most_rows(steps)) if vocabulary_of(model) else BATCH_SIZE)


def most_rows(steps: Iterable[Step]) -> int:
    """Rows of the largest micro-batch, of one process: as many as went through the model at once in training."""
    return max((len(micro.ids) for step in steps for micro in step.micro_batches), default=1)


def parts_of(objective: Objective, batch: Batch, rows: int) -> Iterator[tuple[torch.Tensor, Batch]]:
    """
    Parts of a batch, each with the numbers of its rows, that hold no more tokens than `rows` of the longest.

    Rows of like length go together, and what is padding for all of them is cut off on the right, where the model makes
    the same of them without it.
    """
    lengths = batch.lengths() if objective.padding.is_ignored(objective, batch) else None
    if lengths is None:
        for start in range(0, len(batch), rows):
            yield torch.arange(start, min(start + rows, len(batch))), batch.part(slice(start, start + rows))
        return
    room, order = rows * int(lengths.max()), lengths.argsort(descending=True, stable=True)
    enough = ENOUGH * torch.get_num_threads() if objective.device.type == "cpu" else ENOUGH_FOR_AN_ACCELERATOR
    while len(order):
        longest = max(1, int(lengths[order[0]]))
        count = max(1, min(room, enough) // longest)
        if longest * len(order) <= min(room, enough * 3 // 2):
            count = len(order)  # a rest is not worth a pass of its own
        yield order[:count], batch.part(order[:count]).cut(longest)
        order = order[count:]


def parts_of_rows(objective: Objective, rows: Rows, size: int) -> Iterator[tuple[torch.Tensor, Batch]]:
    """All rows, collated in order by so many, in [`parts_of`] these."""
    for numbers, batch in rows.batches(size):
        for own, part in parts_of(objective, batch, len(batch)):
            yield numbers.start + own, part
