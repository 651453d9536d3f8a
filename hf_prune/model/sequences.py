"""Batches whose rows are of several sequences, such as the chosen and the rejected one of a pair."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Tensors = Mapping[str, torch.Tensor]


def by_row(tensors: Tensors, rows: int, alone: Tensors) -> dict[str, torch.Tensor]:
    """
    Puts the rows first: of `k B` sequences, first one of every row and then the others, are made `(B, k, ...)`.

    Args:
        tensors (`Mapping`): what a collator made of `rows` rows.
        alone (`Mapping`): what it made of the first of these.

    Raises:
        `ValueError`: if the sequences come in another order.
    """
    found = dict(tensors)
    for name, value in tensors.items():
        if value.ndim == 0 or len(value) <= rows or len(value) % rows:
            continue
        found[name] = value.unflatten(0, (-1, rows)).transpose(0, 1)
        if name not in alone or not _is_part(alone[name], found[name][0]):
            raise ValueError(
                f"The {len(value)} sequences of {name!r} that the data_collator makes of {rows} rows cannot be told "
                "apart by row; return them as (rows, sequences, ...), or the first ones of all rows before the second."
            )
    return found


def _is_part(one: torch.Tensor, padded: torch.Tensor) -> bool:
    """Whether the sequences are the same but for padding at either end."""
    if one.shape[0] != padded.shape[0] or one.ndim != padded.ndim:
        return False
    if one.ndim == 1:
        return torch.equal(one, padded)
    width = one.shape[1]
    return torch.equal(one, padded[:, :width]) or torch.equal(one, padded[:, padded.shape[1] - width :])
