"""Sketches on disk: one safetensors file for a stretch of steps, so that a killed pass goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_prune._core.io import write_atomically
from hf_prune.errors import TrajectoryError


@dataclass(frozen=True)
class StepSketch:
    """
    What one optimizer step leaves for the sweep: R pulled rows of its B visits.

    Attributes:
        ids (`torch.Tensor`, `(B,)`): rows of the dataset that were visited.
        weights (`torch.Tensor`, `(B,)`): weight of each visit's loss in the step's objective.
        rows (`torch.Tensor`, `(R, d)`): sketches of the pulls, scaled by the optimizer's denominator to the power
            -1/2.
        plain (`torch.Tensor`, `(R, e)`): narrower sketches of the pulls as they are.
        gram (`torch.Tensor`, `(R, R)`): inner products of the pulls as they are.
        examples (`torch.Tensor`, `(R,)`): which visit a row belongs to.
        slopes, factors (`torch.Tensor`, `(R,)`): see [`Round`].
        levels (`torch.Tensor`, `(parameters,)`): mean logarithm of each parameter's scale at this step.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    rows: torch.Tensor
    plain: torch.Tensor
    gram: torch.Tensor
    examples: torch.Tensor
    slopes: torch.Tensor
    factors: torch.Tensor
    levels: torch.Tensor

    def loss_map(self) -> torch.Tensor:
        """`(R, B)`: combines rows to the gradients of the visits' losses."""
        combined = torch.zeros(len(self.examples), len(self.weights), device=self.rows.device)
        combined[torch.arange(len(self.examples)), self.examples] = self.slopes
        return combined


_NAMES = [field.name for field in fields(StepSketch)]
_ROUNDED = ("rows", "plain")


class Store:
    """A directory of sketches of one trajectory's window, cut into stretches of steps."""

    def __init__(self, path: Path, first: int, last: int, stretch: int):
        self.path = path
        self.stretches = [range(start, min(start + stretch, last)) for start in range(first, last, stretch)]

    def file(self, stretch: range) -> Path:
        return self.path / f"steps-{stretch.start:08d}-{stretch.stop:08d}.safetensors"

    def missing(self) -> list[range]:
        """The stretches that have still to be worked."""
        return [stretch for stretch in self.stretches if not self.file(stretch).exists()]

    def write(self, stretch: range, steps: dict[int, StepSketch]) -> None:
        """Writes a stretch; there is no half of it, whenever the process is killed."""
        tensors = {}
        for t, sketch in steps.items():
            for name in _NAMES:
                value = getattr(sketch, name).cpu().contiguous()
                if name in _ROUNDED:
                    # The rounding adds little to the error of the sketch itself, which more dimensions lower.
                    step = value.abs().amax(1).clamp(min=1e-30) / 127
                    tensors[f"{t}.{name}.step"] = step
                    value = (value / step[:, None]).round_().to(torch.int8)
                tensors[f"{t}.{name}"] = value
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file(stretch), lambda temporary: save_file(tensors, temporary))

    def _load(self, stretch: range) -> dict[str, torch.Tensor]:
        try:
            return load_file(self.file(stretch))
        except (SafetensorError, OSError) as error:
            raise TrajectoryError(
                f"The sketch {self.file(stretch)} cannot be read ({error}); delete it and score again, which makes it "
                "anew."
            ) from error

    def backwards(self, device: torch.device) -> Iterator[tuple[int, StepSketch]]:
        """Every step's sketch with its number, from the last to the first."""
        for stretch in reversed(self.stretches):
            tensors = self._load(stretch)
            for t in reversed(stretch):
                if f"{t}.ids" in tensors:  # a skipped step has left nothing
                    yield t, StepSketch(**{name: _read(tensors, t, name).to(device) for name in _NAMES})


def _read(tensors: dict[str, torch.Tensor], t: int, name: str) -> torch.Tensor:
    value = tensors[f"{t}.{name}"]
    if name not in _ROUNDED:
        return value
    return value.float() * tensors[f"{t}.{name}.step"][:, None]
