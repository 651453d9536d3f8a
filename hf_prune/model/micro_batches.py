"""A batch in parts that the run's own memory held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from hf_prune.model.batch import Batch
from hf_prune.model.losses import IGNORED
from hf_prune.model.token_head import vocabulary_of
from hf_prune.trajectory.trajectory import Step

# Rows in a forward pass where nobody says otherwise.
BATCH_SIZE = 32


def rows_of_a_pass(batch_size: int | None, model: nn.Module, steps: Iterable[Step]) -> int:
    """
    Rows in a forward pass: those asked for, or `BATCH_SIZE`.

    Where each token has the logits of a vocabulary, no more than went through the model at once in training.
    """
    return batch_size or (min(BATCH_SIZE, most_rows(steps)) if vocabulary_of(model) else BATCH_SIZE)


def most_rows(steps: Iterable[Step]) -> int:
    """Rows of the largest micro-batch, of one process: as many as went through the model at once in training."""
    return max((len(micro.ids) for step in steps for micro in step.micro_batches), default=1)


def parts_of(batch: Batch, rows: int) -> Iterator[tuple[torch.Tensor, Batch]]:
    """
    Parts of a batch, each with the numbers of its rows, that hold no more tokens than `rows` of the longest.

    Rows of like length go together, and what is padding for all of them is cut off on the right.
    """
    lengths = _lengths(batch)
    if lengths is None:
        for start in range(0, len(batch), rows):
            yield torch.arange(start, min(start + rows, len(batch))), batch.part(slice(start, start + rows))
        return
    room, order = rows * int(lengths.max()), lengths.argsort(descending=True, stable=True)
    while len(order):
        longest = max(1, int(lengths[order[0]]))
        chosen, order = order[: max(1, room // longest)], order[max(1, room // longest) :]
        yield chosen, _cut(batch.part(chosen), longest)


def _lengths(batch: Batch) -> torch.Tensor | None:
    """How far each row's tokens reach, `(B,)` on the CPU; `None` for rows that are not masked tokens with labels."""
    mask = batch.inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.shape != batch.labels.shape or batch.labels.is_floating_point():
        return None
    used = ((mask != 0) | (batch.labels != IGNORED)).cpu()
    return (used * torch.arange(1, used.shape[1] + 1)).amax(1)


def _cut(batch: Batch, length: int) -> Batch:
    """All that has one entry a token, up to this length."""
    shape = batch.labels.shape

    def own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value[:, :length] if value.shape[:2] == shape else value for name, value in tensors.items()}

    return Batch(own(batch.inputs), batch.labels[:, :length], own(batch.others))
