"""The parameter groups of an optimizer, laid out over the flat parameter vector."""

from __future__ import annotations

import torch


class GroupLayout:
    """
    Spreads one value per parameter group over the flat parameter vector.

    A value that all groups share stays a scalar tensor, so that nothing of length p is made for it.
    """

    def __init__(self, sizes: list[int], groups: list[int]):
        self.sizes = torch.tensor(sizes)
        self.groups = torch.tensor(groups)

    def spread(self, values: list[float]) -> torch.Tensor:
        """One float64 value per group to a scalar or a `(p,)` tensor."""
        table = torch.tensor(values, dtype=torch.float64)
        used = table[self.groups]
        if bool((used == used[0]).all()):
            return used[0]
        return used.repeat_interleave(self.sizes)
