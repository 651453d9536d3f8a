"""Loss and logits in what a model returns, found as the Trainer finds them: by name, or in a tuple by their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def loss_in(output: Any) -> torch.Tensor | None:
    """The loss; of a tuple the first entry, if that is one number."""
    if isinstance(output, Mapping):
        return _tensor(output.get("loss"))
    first = _entry(output, 0)
    return first if first is not None and first.dim() == 0 else None


def logits_in(output: Any) -> torch.Tensor | None:
    """
    The logits; of a tuple the entry after the loss, or the first one where there is no loss.

    Several of equal shape, such as a question's `start_logits` and `end_logits`, are stacked behind the examples.
    """
    if not isinstance(output, Mapping):
        return _entry(output, 0 if loss_in(output) is None else 1)
    logits = _tensor(output.get("logits"))
    if logits is not None:
        return logits
    several = [value for name, value in output.items() if name.endswith("_logits") and isinstance(value, torch.Tensor)]
    return torch.stack(several, 1) if several and len({value.shape for value in several}) == 1 else None


def _entry(output: Any, place: int) -> torch.Tensor | None:
    return _tensor(output[place]) if isinstance(output, tuple | list) and place < len(output) else None


def _tensor(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) else None
