"""The sweep in the sketch's dimensions: seconds for any questions, once the window is sketched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from datasets.utils import tqdm

from hf_prune.influence.clipping import clip_factor, leave_one_out
from hf_prune.influence.dense.sweep import warn_of_growth
from hf_prune.influence.optimizers import Update
from hf_prune.influence.sketch.store import StepSketch, Store
from hf_prune.trajectory.trajectory import Step, Trajectory

CURVATURES = ("none", "fisher", "gauss-newton")


@dataclass(frozen=True)
class SketchedStep:
    """
    One step of the sweep.

    Attributes:
        t (`int`): the optimizer step.
        sketch (`StepSketch`): what the window's pass left of it.
        cotangents (`torch.Tensor`, `(k, d)`): of the step's clipped gradient, scaled.
        factor (`float`): of the clipping.
        across (`torch.Tensor`, `(k, e)`): what the slope of the clipping takes off, along the plain gradient.
        effects (`torch.Tensor`, `(k, B)`): of taking each visit out.
    """

    t: int
    sketch: StepSketch
    cotangents: torch.Tensor
    factor: float
    across: torch.Tensor
    effects: torch.Tensor


class ProjectedSweep:
    """
    Goes back over a sketched window.

    With P the projection and D the inverse of the optimizer's denominator, the state is `P D^(1/2) A`: a step's
    `D_t` between a cotangent and a gradient is then split over the two, and how D changes from step to step is
    followed by its mean in each parameter.

    Args:
        trajectory (`Trajectory`): the recorded run.
        store (`Store`): the sketched window.
        update (`Update`): the optimizer's adjoint, over the sketch's sizes.
        sizes (`list[int]`): dimensions of each parameter's sketch.
        curvature (`str`): `"none"`, `"fisher"` or `"gauss-newton"`.
    """

    def __init__(self, trajectory: Trajectory, store: Store, update: Update, sizes: list[int], curvature: str):
        self.trajectory, self.store, self.update, self.curvature = trajectory, store, update, curvature
        self.sizes = torch.tensor(sizes)
        self.factor = 1.0  # what the Gauss-Newton matrix is multiplied by
        self.max_norm = float(trajectory.manifest.max_grad_norm or 0.0)

    def steps(self, directions: torch.Tensor, levels: torch.Tensor) -> Iterator[SketchedStep]:
        """Sweeps `directions (k, d)`, sketched with scales of mean logarithms `levels`, back to the window's start."""
        A, M = self.update.start(directions.clone())
        total, length, largest = sum(map(len, self.store.stretches)), float(A.norm()), 0.0
        for t, sketch in tqdm(self.store.backwards(A.device), total=total, desc="Sweeping", unit="step"):
            if not torch.equal(sketch.levels.cpu(), levels):
                change = (sketch.levels.cpu() - levels).exp().repeat_interleave(self.sizes).to(A)
                A *= change
                M /= change
                levels = sketch.levels.cpu()
            step = self.trajectory.step(t)
            C = self.update.cotangent(A, M, step.learning_rates, None, self.trajectory.updates_before(t))
            self.update.pull_back(A, C, step.learning_rates)
            yield self._through_gradient(step, sketch, A, C)
            largest = max(largest, float(A.norm()) / length)
        warn_of_growth(self.trajectory, largest)

    def _through_gradient(self, step: Step, sketch: StepSketch, A: torch.Tensor, C: torch.Tensor) -> SketchedStep:
        """Takes `C` through clipping and the step's gradient; adds the curvature term to `A`."""
        weights, examples = sketch.weights, sketch.examples
        loss = sketch.loss_map()
        batch = loss @ weights  # rows to the step's gradient
        dots = C @ sketch.rows.T
        slope = dots @ batch
        along = sketch.gram @ batch
        norm = max(step.grad_norm, max(0.0, float(batch @ along)) ** 0.5)
        factor = clip_factor(step.grad_norm, self.max_norm)
        across = torch.zeros(len(C), sketch.plain.shape[1], device=A.device)
        pulled = dots
        if factor < 1:
            pulled = factor * (dots - torch.outer(slope, along / norm**2))
            across = torch.outer(slope, batch @ sketch.plain) * (factor / norm**2)
        if self.curvature == "gauss-newton":
            A += (pulled * (self.factor * weights[examples] * sketch.factors)) @ sketch.rows
        elif self.curvature == "fisher":
            A += (((pulled @ loss) * weights) @ loss.T) @ sketch.rows
        if factor < 1:
            squares = (loss * (sketch.gram @ loss)).sum(0)
            effects = leave_one_out(
                step.grad_norm, self.max_norm, slope, dots @ loss, torch.stack([along @ loss, squares]), weights
            )
        else:
            effects = -weights * (dots @ loss)
        return SketchedStep(step.index, sketch, C, factor, across, effects)
