"""The sketched window on disk: one file for a shard of some steps, so that a killed pass goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

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
    The sketches of the steps `first <= t < last`.

    Args:
        cache (`SharedCache`): holds the files.
        sketch (`CountSketch`): what gradients are sketched with.
        rows_of (`Callable[[int], np.ndarray]`): the rows that each step visits; none where the step was skipped.
        curved (`bool`, *optional*, defaults to `True`): whether the curvature's factors are needed, or the gradients'
            alone; where both are there already they serve for either.
    """

    def __init__(
        self,
        cache: SharedCache,
        first: int,
        last: int,
        sketch: CountSketch,
        rows_of: Callable[[int], np.ndarray],
        *,
        curved: bool = True,
    ):
        self.cache, self.sketch, self.rows_of, self.curved = cache, sketch, rows_of, True
        self.shards = [range(start, min(start + SHARD, last)) for start in range(first, last, SHARD)]
        if not curved and self.cache.missing(self._name(shard) for shard in self.shards):
            self.curved = False
        self._names = {self._name(shard): shard for shard in self.shards}

    def missing(self) -> list[range]:
        """The shards that are still to be sketched."""
        return [self._names[name] for name in self.cache.missing(self._names)]

    def own_share(self) -> list[range]:
        """Those of them that fall to this process."""
        return [self._names[name] for name in self.cache.own_share(self._names)]

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
                    yield t, StepSketch(**{name: _read(tensors, t, name).to(device) for name in _NAMES})

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
        return f"{'steps' if self.curved else 'gradients'}-{shard.start:08d}-{shard.stop:08d}.safetensors"


def packed(sketch: StepSketch) -> dict[str, torch.Tensor]:
    """A step's sketches as they are kept, on the CPU: in a byte an entry, which most of their room goes to."""
    tensors = {}
    for name in _NAMES:
        value = getattr(sketch, name).cpu().contiguous()
        if name in _ROUNDED:
            # The rounding adds little to the error of the sketch itself, which more dimensions lower.
            step = value.abs().amax(1).clamp(min=1e-30) / 127
            tensors[f"{name}.step"] = step
            value = (value / step[:, None]).round_().to(torch.int8)
        tensors[name] = value
    return tensors


def _read(tensors: dict[str, torch.Tensor], t: int, name: str) -> torch.Tensor:
    value = tensors[f"{t}.{name}"]
    if name not in _ROUNDED:
        return value
    return value.float() * tensors[f"{t}.{name}.step"][:, None]
