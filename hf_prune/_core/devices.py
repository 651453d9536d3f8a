"""What a device has that another has not."""

from __future__ import annotations

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """The most precise floating-point type of a device: Apple's have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
