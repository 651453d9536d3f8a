"""Rows that a collator lays end to end in one sequence (padding-free, packed): put under each other again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from hf_prune.model.batch import IGNORED

Made = Mapping[str, Any]


def lies_end_to_end(made: Made) -> bool:
    """Whether a collator made one sequence, in which positions tell where rows begin; no mask does."""
    one = made.get("input_ids")
    return isinstance(one, torch.Tensor) and len(one) == 1 and "position_ids" in made and "attention_mask" not in made


def under_each_other(made: Sequence[Made]) -> dict[str, torch.Tensor]:
    """
    What a collator made of each row alone, as one batch padded on the right.

    Positions stay as the collator gave them, so that pieces which were packed into a row do not see each other; a
    token that pads has position 0, and is a piece of its own.
    """
    length = max(one["input_ids"].shape[1] for one in made)
    found: dict[str, torch.Tensor] = {}
    for name, first in made[0].items():
        if not isinstance(first, torch.Tensor) or first.ndim == 0 or len(first) != 1:
            continue  # where each row begins in one sequence, which the positions say too
        if first.shape == made[0]["input_ids"].shape:
            fill = IGNORED if name == "labels" else 0
            found[name] = torch.cat([pad(one[name], (0, length - one[name].shape[1]), value=fill) for one in made])
        else:
            found[name] = torch.cat([one[name] for one in made])
    return found
