"""A count sketch of gradients: parameter by parameter, entries get a sign and are summed into few buckets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

# The fewest buckets that a parameter gets.
FEWEST = 63
# Elements of one chunk of per-example gradients: on a CPU small enough to stay in its cache.
CHUNK, CHUNK_OF_ACCELERATOR = 1 << 18, 1 << 26


class CountSketch:
    """
    A random linear map of gradients, `p -> d`, that keeps inner products in the mean.

    Entry a of a parameter goes with a random sign into bucket `a mod m` of that parameter's m buckets (Charikar, Chen,
    Farach-Colton 2002); its inner products have a standard error of about `|x| |y| / sqrt(m)`. That of the whole is
    least, `|x| |y| / sqrt(d)`, where m is in proportion to the parameter's share of the squared norms. m has no common
    divisor with the length of the parameter's rows, so that entries of one column spread. Signs are products of a
    row's sign and a column's, so that they can be put on activations and output gradients.

    Args:
        shapes (`Sequence[tuple[int, ...]]`): shapes of the recorded parameters.
        width (`int`): about how many dimensions d to allot.
        shares (`Sequence[float]`, *optional*): each parameter's share of them; by default that of its size.
        seed (`int`): seed of the signs.
        device (`torch.device`): where gradients are.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        width: int,
        *,
        seed: int,
        device: torch.device,
        shares: Sequence[float] | None = None,
    ):
        self.shapes = [matrix_shape(shape) for shape in shapes]
        sizes = [rows * columns for rows, columns in self.shapes]
        given = sizes if shares is None else shares
        self.sizes = [
            _buckets(size, columns, math.ceil(width * share / sum(given)))
            for size, (_, columns), share in zip(sizes, self.shapes, given, strict=True)
        ]
        self.parts = _slices(self.sizes)
        self.width = sum(self.sizes)
        self.chunk = CHUNK if device.type == "cpu" else CHUNK_OF_ACCELERATOR
        # Fresh memory costs several times the product that is written to it.
        self.buffer = torch.empty(max(self.chunk, *sizes), device=device)
        generator = torch.Generator().manual_seed(seed)
        self.signs = [
            (_signs(rows, generator).to(device), _signs(columns, generator).to(device))
            for rows, columns in self.shapes
        ]

    @property
    def folds(self) -> bool:
        """Whether most entries share a bucket, so that inner products have an error far above bfloat16's rounding."""
        return 2 * self.width < sum(rows * columns for rows, columns in self.shapes)

    def fold(self, place: int, signed: torch.Tensor) -> torch.Tensor:
        """Entries `(B, size)` of parameter `place`, signs already on them, to its buckets `(B, m)`."""
        m, size = self.sizes[place], signed.shape[1]
        if m == size:
            return signed
        whole = size // m * m
        parts = signed[:, :whole].view(len(signed), -1, m)
        # a product is the faster sum of floats, and the slower of half floats
        ones = parts.new_ones(1, parts.shape[1])
        folded = (ones @ parts)[:, 0] if parts.dtype == torch.float32 else parts.sum(1)
        if whole < size:
            folded[:, : size - whole] += signed[:, whole:]
        return folded

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """One value per parameter `(parameters,)` to the sketch's dimensions `(d,)`, on its device."""
        return values.repeat_interleave(torch.tensor(self.sizes)).to(self.buffer.device)

    def sketch(self, vectors: torch.Tensor, scales: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Flat vectors `(B, p)`, entries times the parameters' `scales`, to sketches `(B, d)`."""
        parts = []
        start = 0
        for place, (rows, columns) in enumerate(self.shapes):
            out, inner = self.signs[place]
            part = vectors[:, start : start + rows * columns].view(-1, rows, columns)
            part = (part * out[:, None] * inner).flatten(1)
            scale = scales[place]
            parts.append(self.fold(place, part if scale is None else part * scale))
            start += rows * columns
        return torch.cat(parts, 1)

    def unsketch(self, values: torch.Tensor, scales: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """
        The adjoint of [`sketch`]: the vector `(p,)` whose product with any other is that of `values (d,)` with the
        other's sketch.
        """
        parts = []
        for place, (rows, columns) in enumerate(self.shapes):
            (out, inner), scale = self.signs[place], scales[place]
            own = values[self.parts[place]]
            repeated = own.repeat(-(-rows * columns // len(own)))[: rows * columns]
            entries = (repeated.view(rows, columns) * out[:, None] * inner).flatten()
            parts.append(entries if scale is None else entries * scale)
        return torch.cat(parts)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 matrices in hardware."""
    if device.type == "cpu":
        tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older torch has none
        return bool(tell().get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A parameter's shape as rows and columns: one row a first index; a vector is one column."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _buckets(size: int, columns: int, wanted: int) -> int:
    buckets = max(FEWEST, wanted) | 1
    while buckets < size and math.gcd(buckets, columns) > 1:
        buckets += 2
    return min(buckets, size)


def _signs(length: int, generator: torch.Generator) -> torch.Tensor:
    if length == 1:
        return torch.ones(1)  # the other index's sign is enough
    return torch.randint(0, 2, (length,), generator=generator).float() * 2 - 1


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(ends)]
