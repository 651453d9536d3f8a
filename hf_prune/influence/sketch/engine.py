"""Sketch the window once, then answer any questions about any rows from the sketches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets.utils import tqdm

from hf_prune._core.io import json_made_once
from hf_prune._core.processes import Processes
from hf_prune.influence.dense.sweep import Sweep
from hf_prune.influence.optimizers import update_for
from hf_prune.influence.sketch.count_sketch import Projection, fast_bfloat16
from hf_prune.influence.sketch.query_sketches import residuals
from hf_prune.influence.sketch.store import StepSketch, Store
from hf_prune.influence.sketch.sweep import ProjectedSweep
from hf_prune.influence.sketch.window_pass import STRETCH, WindowPass, narrow
from hf_prune.model.rows import Rows

# Dimensions of a sketch: inner products of gradients have a standard error of about one part in 250.
WIDTH = 1 << 16
# Those of the sketch that tells where the gradients' squared norms are.
COARSE = 1 << 14


@dataclass(frozen=True)
class SketchedSegment:
    """
    The summed cotangents of a stretch between two snapshots (see [`Segment`]), sketched.

    Attributes:
        middle (`int`): the step in its middle.
        cotangents (`torch.Tensor`, `(k, d)`): scaled, with scales of mean logarithms `levels`.
        across (`torch.Tensor`, `(k, e)`): what clipping's slope takes off along the plain gradients.
        levels (`torch.Tensor`, `(parameters,)`): see [`StepSketch`].
    """

    middle: int
    cotangents: torch.Tensor
    across: torch.Tensor
    levels: torch.Tensor


class ProjectedEngine:
    """
    Influence by sketches.

    Args:
        sweep (`Sweep`): knows the trajectory, the objective, the rows, and their weights.
        ranks (`Processes`): the processes that share the work.
        curvature (`str`): `"none"`, `"fisher"` or `"gauss-newton"`.
        directory (`Path`): where the window's sketches are kept.
        width (`int`, *optional*, defaults to 65,536): about how many dimensions a sketch has.
    """

    def __init__(self, sweep: Sweep, ranks: Processes, *, curvature: str, directory: Path, width: int = WIDTH):
        objective, trajectory = sweep.objective, sweep.trajectory
        self.objective, self.trajectory, self.rows, self.ranks = objective, trajectory, sweep.rows, ranks
        with ranks.main_first():
            shares = self._shares(sweep, directory / "layout.json")
        self.projection = Projection(objective.shapes, width, seed=1, device=objective.device, shares=shares)
        half = self.projection.folds and fast_bfloat16(objective.device)
        self.work = WindowPass(sweep, self.projection, half=half)
        self.store = Store(directory, *trajectory.window, STRETCH)
        manifest = trajectory.manifest
        groups = [parameter.group for parameter in manifest.parameters]
        update = update_for(manifest.optimizer, self.projection.sizes, groups)
        self.sweep = ProjectedSweep(trajectory, self.store, update, self.projection.sizes, curvature)
        self.theta = sweep.theta

    def _shares(self, sweep: Sweep, file: Path) -> list[float]:
        """What each parameter gets of the sketch: measured once, for every sketch must be folded alike."""

        def shares() -> list[float]:
            coarse = Projection(sweep.objective.shapes, COARSE, seed=0, device=sweep.objective.device)
            return WindowPass(sweep, coarse, half=False).shares()

        return json_made_once(file, shares)

    def prepare(self) -> None:
        """The one pass that needs the model; processes share it."""
        self.work.run(self.store, self.ranks.rank, self.ranks.world)
        self.ranks.barrier()

    def visits(self, directions: torch.Tensor, levels: torch.Tensor) -> np.ndarray:
        """The influence `(n, k)` of each row through its own recorded visits."""
        total = np.zeros((len(self.rows), len(directions)))
        for swept in self.sweep.steps(directions, levels):
            np.add.at(total, swept.sketch.ids.cpu().numpy(), swept.effects.T.double().cpu().numpy())
        return total

    def segments(self, directions: torch.Tensor, levels: torch.Tensor) -> list[SketchedSegment]:
        """The summed cotangents of each stretch between two snapshots, from the first to the last."""
        marks = self.trajectory.snapshot_steps
        found: dict[int, SketchedSegment] = {}
        for swept in self.sweep.steps(directions, levels):
            place = int(np.searchsorted(marks, swept.t, side="right")) - 1
            sketch, total = swept.sketch, swept.sketch.weights.sum()
            if place not in found:
                middle = (marks[place] + marks[place + 1]) // 2
                zeros = torch.zeros_like(swept.cotangents), torch.zeros_like(swept.across)
                found[place] = SketchedSegment(middle, *zeros, sketch.levels)
            own = found[place]
            change = self.spread(sketch.levels - own.levels)
            own.cotangents.add_(swept.cotangents * change, alpha=float(total * swept.factor))
            own.across.add_(swept.across, alpha=float(total))
        for place in range(len(marks) - 1):
            if place not in found:  # all its steps were skipped
                zeros = torch.zeros_like(directions), directions.new_zeros(len(directions), 1)
                found[place] = SketchedSegment((marks[place] + marks[place + 1]) // 2, *zeros, levels)
        return [found[place] for place in range(len(marks) - 1)]

    def spread(self, levels: torch.Tensor) -> torch.Tensor:
        """Differences of mean logarithms `(parameters,)` to factors of the sketch's dimensions `(d,)`."""
        sizes = torch.tensor(self.projection.sizes)
        return levels.cpu().exp().repeat_interleave(sizes).to(self.objective.device)

    def expected(self, segments: list[SketchedSegment]) -> tuple[np.ndarray, np.ndarray]:
        """
        `sum_j <C_j, grad l_i>` `(n, k)` from the gradients of the row's own visits, and which rows `(n,)` had any.

        In a segment without a visit of the row, its gradient is that of the visits in the nearest segment with one.
        """
        marks = self.trajectory.snapshot_steps[1:-1]
        counts = np.zeros((len(self.rows), len(segments)), dtype=np.int64)
        for t in range(*self.trajectory.window):
            step = self.trajectory.step(t)
            if not step.skipped:
                place = int(np.searchsorted(marks, t, side="right"))
                counts[:, place] += np.bincount(self.work.sweep.row_of(step.ids), minlength=len(counts))
        seen: np.ndarray = counts.sum(1) > 0
        nearest = _nearest(counts > 0)
        k = len(segments[0].cotangents)
        total = np.zeros((len(self.rows), k))
        for t, sketch in self.store.backwards(self.objective.device):
            ids = sketch.ids.cpu().numpy()
            own = int(np.searchsorted(marks, t, side="right"))
            for place, segment in enumerate(segments):
                serves = nearest[ids, place] == own
                if serves.any():
                    dots = self._dots(segment, sketch) / counts[ids, own]
                    np.add.at(total, ids[serves], dots.T[serves])
        return total, seen

    def _dots(self, segment: SketchedSegment, sketch: StepSketch) -> np.ndarray:
        """`<C, grad l_i>` `(k, B)` of a step's visits."""
        loss = sketch.loss_map()
        C = segment.cotangents * self.spread(segment.levels - sketch.levels)
        return ((C @ sketch.rows.T - segment.across @ sketch.plain.T) @ loss).double().cpu().numpy()

    def expected_of(
        self, segments: list[SketchedSegment], rows: Rows, numbers: np.ndarray, batch_size: int
    ) -> np.ndarray:
        """`sum_j <C_j, grad l_i(theta_j)>` `(B, k)` for the rows with these `numbers (B,)`, visited or not."""
        parts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
        total = torch.zeros(len(numbers), len(segments[0].cotangents), device=self.objective.device)
        with tqdm(total=len(parts) * len(segments), desc="Scoring unvisited rows", unit="batch") as bar:
            for segment in segments:  # outside: reading snapshots takes longer than a batch
                theta, (scales, levels) = self.theta(segment.middle), self.work.scales(segment.middle)
                C = segment.cotangents * self.spread(segment.levels - levels)
                for part, found in zip(parts, total.split(batch_size), strict=True):
                    batch = rows.batch(part.tolist())
                    with self.work.pulls.forward(theta, batch.inputs) as forward:
                        errors = residuals(self.work, batch, forward.logits)
                        scaled, plain = forward.pull(errors, scales, plain=True)
                    assert plain is not None
                    found += scaled @ C.T - narrow(plain) @ segment.across.T
                    bar.update()
        return total.double().cpu().numpy()


def _nearest(has: np.ndarray) -> np.ndarray:
    """For each row and segment the nearest segment in which `has (n, J)` holds, the earlier of two."""
    J = has.shape[1]
    places = np.arange(J, dtype=np.int32)
    before = np.maximum.accumulate(np.where(has, places, -J), axis=1)
    after = np.minimum.accumulate(np.where(has, places, 3 * J)[:, ::-1], axis=1)[:, ::-1]
    return np.where(places - before <= after - places, before, after)
