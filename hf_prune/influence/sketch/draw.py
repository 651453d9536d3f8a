"""Labels drawn from a model's chances, on the device where these are."""

from __future__ import annotations

import torch

from hf_prune._core.devices import widest_float

# Entries of a distribution that are added up one by one.
BLOCK = 256


def draw(chances: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """
    A class for each of `chances (n, V)`, the first up to which they sum to more than `uniforms (n,)` in [0, 1).

    Looked for by blocks first: only their sums and one block's entries are added up one by one.
    """
    width = chances.shape[1]
    whole = width // BLOCK * BLOCK
    sums = [chances[:, :whole].unflatten(1, (-1, BLOCK)).sum(2)] if whole else []
    sums += [chances[:, whole:].sum(1, keepdim=True)] if whole < width else []
    wide = widest_float(chances.device)
    ends = torch.cat(sums, 1).to(wide).cumsum(1)
    wanted = uniforms[:, None].to(wide) * ends[:, -1:]
    block = torch.searchsorted(ends, wanted, right=True).clamp(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    places = block * BLOCK + torch.arange(BLOCK, device=chances.device)
    inside = chances.gather(1, places.clamp(max=width - 1)).to(wide) * (places < width)
    place = torch.searchsorted(inside.cumsum(1), wanted - before, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + place).clamp(max=width - 1)[:, 0]
