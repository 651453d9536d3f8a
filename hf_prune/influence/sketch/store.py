"""The sketched window on disk: one file for a shard of some steps, so that a killed pass goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields
from itertools import chain, pairwise

import numpy as np
import torch

from hf_prune.errors import TrajectoryError
from hf_prune.influence.cache import CACHE, SharedCache
from hf_prune.influence.sketch.count_sketch import CountSketch

# Steps that share one scale of the gradients, and one file.
SHARD = 8


@dataclass(frozen=True)
class StepSketch:
    """
    What one optimizer step leaves for the sweep: the sketched VJPs of its B visits' logit factors, R in all.

    Attributes:
        ids (`torch.Tensor`, `(B,)`): rows of the dataset that were visited.
        weights (`torch.Tensor`, `(B,)`): weight of each visit's loss in the step's objective.
        growth, groups (`torch.Tensor`, `(B,)`): what leaves with each visit, see [`Removal`].
        sketches (`torch.Tensor`, `(R, d)`): of the VJPs, scaled by the optimizer's denominator to the power -1/2.
        unscaled (`torch.Tensor`, `(R, e)`): narrower sketches of the VJPs as they are.
        gram (`torch.Tensor`, `(R, R)`): inner products of the VJPs as they are.
        examples (`torch.Tensor`, `(R,)`): which visit a VJP belongs to.
        gradient, curvature (`torch.Tensor`, `(R,)`): coefficients, see [`LogitFactor`].
        log_scales (`torch.Tensor`, `(parameters,)`): mean logarithm of each parameter's scale at this step.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    growth: torch.Tensor
    groups: torch.Tensor
    sketches: torch.Tensor
    unscaled: torch.Tensor
    gram: torch.Tensor
    examples: torch.Tensor
    gradient: torch.Tensor
    curvature: torch.Tensor
    log_scales: torch.Tensor

    @property
    def same(self) -> torch.Tensor:
        """Whether two visits share a denominator, `(B, B)`."""
        return (self.groups[:, None] == self.groups).float()

    def loss_map(self) -> torch.Tensor:
        """`(R, B)`: combines VJPs to the gradients of the visits' losses."""
        combined = torch.zeros(len(self.examples), len(self.weights), device=self.sketches.device)
        combined[torch.arange(len(self.examples)), self.examples] = self.gradient
        return combined


_NAMES = [field.name for field in fields(StepSketch)]
_ROUNDED = ("sketches", "unscaled")


class Store:
    """
    The sketches of a window's steps, a shard of which lies between two snapshots.

    Args:
        cache (`SharedCache`): holds the files.
        marks (`Sequence[int]`): the steps of the window's snapshots.
        sketch (`CountSketch`): what gradients are sketched with.
        rows_of (`Callable[[int], np.ndarray]`): the rows of each step whose visits are sketched; none where the step
            was skipped.
        curved (`bool`, *optional*, defaults to `True`): whether the curvature's factors are needed, or the gradients'
            alone; where both are there already they serve for either.
        prefix (`str`, *optional*): what the files' names begin with.

    Attributes:
        segments (`list[list[range]]`): the shards between each two snapshots that have a visit.
        shards (`list[range]`): all of them.
    """

    def __init__(
        self,
        cache: SharedCache,
        marks: Sequence[int],
        sketch: CountSketch,
        rows_of: Callable[[int], np.ndarray],
        *,
        curved: bool = True,
        prefix: str = "",
    ):
        self.cache, self.sketch, self.rows_of, self.curved, self.prefix = cache, sketch, rows_of, True, prefix
        self.segments = [
            [shard for shard in _shards(first, last) if any(len(rows_of(t)) for t in shard)]
            for first, last in pairwise(marks)
        ]
        self.shards = list(chain.from_iterable(self.segments))
        if not curved and self.missing():
            self.curved = False

    def segment(self, place: int) -> Store:
        """The same of one segment alone."""
        part = copy(self)
        part.shards = self.segments[place]
        return part

    def missing(self) -> list[range]:
        """The shards that are still to be sketched."""
        return self._of(self.cache.missing(map(self._name, self.shards)))

    def own_share(self) -> list[range]:
        """Those of them that fall to this process."""
        return self._of(self.cache.own_share(map(self._name, self.shards)))

    def _of(self, names: list[str]) -> list[range]:
        wanted = set(names)
        return [shard for shard in self.shards if self._name(shard) in wanted]

    def remove(self) -> None:
        """Removes the shards."""
        for shard in self.shards:
            (self.cache.directory / self._name(shard)).unlink(missing_ok=True)

    def write(self, shard: range, steps: dict[int, dict[str, torch.Tensor]]) -> None:
        """Writes a shard of [`packed`] steps; the file is never half there, whenever the process is killed."""
        tensors = {f"{t}.{name}": value for t, step in steps.items() for name, value in step.items()}
        self.cache.write(self._name(shard), tensors)

    def backwards(self, device: torch.device) -> Iterator[tuple[int, StepSketch]]:
        """Every step's sketch with its number, from the last to the first."""
        for shard in reversed(self.shards):
            tensors = self.cache.read(self._name(shard))
            for t in reversed(shard):
                rows = self.rows_of(t)
                if len(rows):  # a skipped step has left nothing
                    if not self._fits(tensors, t, rows):
                        file = self.cache.directory / self._name(shard)
                        raise TrajectoryError(f"{file} does not hold what step {t} left: {CACHE.mend}.")
                    yield t, StepSketch(**{name: _read(tensors, t, name, device) for name in _NAMES})

    def _fits(self, tensors: dict[str, torch.Tensor], t: int, rows: np.ndarray) -> bool:
        """Whether the sketch of a step is there, of these visits, and in the right form."""
        keys = [f"{t}.{name}" for name in _NAMES] + [f"{t}.{name}.step" for name in _ROUNDED]
        if not all(key in tensors for key in keys):
            return False
        found = {name: tensors[f"{t}.{name}"] for name in _NAMES}
        if found["examples"].ndim != 1 or found["unscaled"].ndim != 2:
            return False
        b, r = len(rows), len(found["examples"])
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("ids", "weights", "growth", "groups"), (b,)),
            **dict.fromkeys(("examples", "gradient", "curvature", "sketches.step", "unscaled.step"), (r,)),
            "sketches": (r, self.sketch.width),
            "unscaled": (r, found["unscaled"].shape[1]),
            "gram": (r, r),
            "log_scales": (len(self.sketch.sizes),),
        }
        if any(tensors[f"{t}.{name}"].shape != shape for name, shape in shapes.items()):
            return False
        examples = found["examples"]
        return bool(((examples >= 0) & (examples < b)).all()) and found["ids"].tolist() == rows.tolist()

    def _name(self, shard: range) -> str:
        kind = "steps" if self.curved else "gradients"
        return f"{self.prefix}{kind}-{shard.start:08d}-{shard.stop:08d}.safetensors"


def _shards(first: int, last: int) -> list[range]:
    return [range(start, min(start + SHARD, last)) for start in range(first, last, SHARD)]


def packed(sketch: StepSketch) -> dict[str, torch.Tensor]:
    """A step's sketches as they are kept, on the CPU: in a byte an entry, which most of their room goes to."""
    tensors = {}
    for name in _NAMES:
        value = getattr(sketch, name)
        if name in _ROUNDED:
            # The rounding adds little to the error of the sketch itself, which more dimensions lower.
            step = value.abs().amax(1).clamp(min=1e-30) / 127
            tensors[f"{name}.step"] = step.cpu()
            value = (value / step[:, None]).round_().to(torch.int8)  # on the device: a quarter of the bytes leave it
        tensors[name] = value.cpu().contiguous()
    return tensors


def _read(tensors: dict[str, torch.Tensor], t: int, name: str, device: torch.device) -> torch.Tensor:
    value = tensors[f"{t}.{name}"].to(device)
    if name not in _ROUNDED:
        return value
    return value.float() * tensors[f"{t}.{name}.step"].to(device)[:, None]
