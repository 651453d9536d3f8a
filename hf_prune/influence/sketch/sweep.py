"""The sweep in the sketch's dimensions: seconds for any queries, once the window is sketched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from hf_prune.influence.clipping import clip_factor, leave_one_out
from hf_prune.influence.removal import Removal
from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.scales import ScaledSketches
from hf_prune.influence.sketch.store import StepSketch
from hf_prune.optimizers import adjoint_for
from hf_prune.trajectory.trajectory import Step, Trajectory


@dataclass(frozen=True)
class SketchedStep:
    """
    One step of the sweep.

    Attributes:
        t (`int`): the optimizer step.
        sketch (`StepSketch`): what the window's pass left of it.
        cotangents (`torch.Tensor`, `(k, d)`): of the step's clipped gradient, scaled as the sketch is.
        clip_factor (`float`): what the gradient was multiplied by.
        clip_term (`torch.Tensor`, `(k, e)`): what the slope of the clipping takes off, along the unscaled gradient.
        effects (`torch.Tensor`, `(k, B)`): of taking each visit out.
    """

    t: int
    sketch: StepSketch
    cotangents: torch.Tensor
    clip_factor: float
    clip_term: torch.Tensor
    effects: torch.Tensor


@dataclass(frozen=True)
class SketchedSegment:
    """
    The summed cotangents of the steps between two snapshots, sketched.

    Attributes:
        cotangents (`torch.Tensor`, `(k, d)`): scaled, with scales of mean logarithms `log_scales`.
        clip_term (`torch.Tensor`, `(k, e)`): what clipping's slope takes off along the unscaled gradients.
        log_scales (`torch.Tensor`, `(parameters,)`): see [`StepSketch`].
    """

    cotangents: torch.Tensor
    clip_term: torch.Tensor
    log_scales: torch.Tensor


@dataclass
class SweepState:
    """
    A sweep between two steps.

    Attributes:
        A, M (`torch.Tensor`, `(k, d)`): cotangents of the parameters and of the first moment, scaled.
        log_scales (`torch.Tensor`, `(parameters,)`): the mean logarithm of the scales, on the CPU.
        length (`float`): that of A at the window's end.
        largest (`float`): the largest that it was.
        lengths (`list[float]`): that after each step that this process made.
    """

    A: torch.Tensor
    M: torch.Tensor
    log_scales: torch.Tensor
    length: float
    largest: float
    lengths: list[float] = field(default_factory=list)


class SketchSweep:
    """
    Goes back over sketched steps.

    With P the sketch and D the inverse of the optimizer's denominator, the state is `P D^(1/2) A`: a step's `D_t`
    between a cotangent and a gradient is then split over the two, and how D changes from step to step is followed by
    its mean in each parameter.

    Args:
        trajectory (`Trajectory`): the recorded run.
        sketch (`CountSketch`): the sketch.
        curvature (`str`): `"none"`, `"fisher"` or `"gauss-newton"`.
        gn_scale (`float`, *optional*, defaults to 1): what the Gauss-Newton matrix is multiplied by.
    """

    def __init__(self, trajectory: Trajectory, sketch: CountSketch, *, curvature: str, gn_scale: float = 1.0):
        self.trajectory, self.sketch = trajectory, sketch
        self.curvature, self.gn_scale = curvature, gn_scale
        manifest = trajectory.manifest
        self.adjoint = adjoint_for(manifest.optimizer, sketch.sizes, [p.group for p in manifest.parameters])
        self.max_norm = float(manifest.max_grad_norm or 0.0)

    def start(self, queries: ScaledSketches) -> SweepState:
        """The sweep of k queries at the window's end."""
        A, M = self.adjoint.start(queries.values.clone())
        return SweepState(A, M, queries.log_scales, float(A.norm()), 0.0)

    def steps(self, state: SweepState, sketches: Iterable[tuple[int, StepSketch]]) -> Iterator[SketchedStep]:
        """Takes a sweep back over steps, from the last to the first."""
        A, M = state.A, state.M
        for t, sketch in sketches:
            log_scales = sketch.log_scales.cpu()
            if not torch.equal(log_scales, state.log_scales):
                change = self.sketch.spread((log_scales - state.log_scales).exp())
                A *= change
                M /= change
                state.log_scales = log_scales
            step = self.trajectory.step(t)
            C = self.adjoint.step_adjoint_(A, M, step.learning_rates, None, self.trajectory.updates_before(t))
            self.adjoint.decay_adjoint_(A, C, step.learning_rates)
            yield self._through_gradient(step, sketch, A, C)
            state.lengths.append(float(A.norm()))
            state.largest = max(state.largest, state.lengths[-1])

    def _through_gradient(self, step: Step, sketch: StepSketch, A: torch.Tensor, C: torch.Tensor) -> SketchedStep:
        """Takes `C` through clipping and the step's gradient; adds the curvature term to `A`."""
        weights, examples = sketch.weights, sketch.examples
        loss = sketch.loss_map()
        batch = loss @ weights  # VJPs to the step's gradient
        dots = C @ sketch.sketches.T
        slope = dots @ batch
        along = sketch.gram @ batch
        norm = max(step.grad_norm, max(0.0, float(batch @ along)) ** 0.5)
        factor = clip_factor(step.grad_norm, self.max_norm)
        clip_term = torch.zeros(len(C), sketch.unscaled.shape[1], device=A.device)
        unclipped = dots
        if factor < 1:
            unclipped = factor * (dots - torch.outer(slope, along / norm**2))
            clip_term = torch.outer(slope, batch @ sketch.unscaled) * (factor / norm**2)
        if self.curvature == "gauss-newton":
            A += (unclipped * (self.gn_scale * weights[examples] * sketch.curvature)) @ sketch.sketches
        elif self.curvature == "fisher":
            A += (((unclipped @ loss) * weights) @ loss.T) @ sketch.sketches
        removal = Removal(weights, sketch.growth, sketch.same)
        if factor < 1:
            products = sketch.gram @ loss
            parts = ((loss * weights @ sketch.same) * products).sum(0)
            known = torch.stack([along @ loss, (loss * products).sum(0), parts])
            effects = leave_one_out(step.grad_norm, self.max_norm, slope, dots @ loss, known, removal)
        else:
            effects = removal.along(dots @ loss)
        return SketchedStep(step.index, sketch, C, factor, clip_term, effects)
