"""The reverse pass over the window: from query gradients to what each visit, or each row, does to the queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from datasets.utils import tqdm

from hf_prune.influence.checks import has_few_steps, warn_of_growth
from hf_prune.influence.clipping import Clip, clip_factor
from hf_prune.influence.dense.curvature import Parts, step_work
from hf_prune.influence.removal import Removal
from hf_prune.model.per_example import batch_gradient
from hf_prune.model.replay import Replay
from hf_prune.model.weights import WeightedBatch
from hf_prune.optimizers import adjoint_for
from hf_prune.trajectory.trajectory import Step


@dataclass(frozen=True)
class Segment:
    """
    The summed cotangents of the steps between two snapshots: what a row does in expectation over the order of batches.

    Attributes:
        theta (`torch.Tensor`, `(p,)`): the parameters in the middle of the segment.
        cotangents (`torch.Tensor`, `(k, p)`): the sum of the steps' gradient cotangents, each times the total
            weight of the step's examples.
    """

    theta: torch.Tensor
    cotangents: torch.Tensor


@dataclass(frozen=True)
class SweptStep:
    """
    One step of the sweep.

    Attributes:
        step (`Step`): the optimizer step.
        visits (`WeightedBatch`): its B visits.
        cotangents (`torch.Tensor`, `(k, p)`): of the step's gradient before clipping.
        effects (`torch.Tensor`, `(k, B)`, *optional*): of removing each visit, if asked for.
    """

    step: Step
    visits: WeightedBatch
    cotangents: torch.Tensor
    effects: torch.Tensor | None


class DenseSweep:
    """
    Goes back over a trajectory's window (arXiv 1906.08473, algorithm 2, for k queries and any supported optimizer).

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        curvature (`str`): one of `"none"`, `"fisher"`, `"gauss-newton"`, `"exact"`.
        gn_scale (`float`, *optional*, defaults to 1): what the Gauss-Newton matrix is multiplied by.
        finite (`bool`, *optional*, defaults to `True`):
            Whether effects hold the finite change that leaving a row out makes to the clipping factor, or its slope.
        budget (`int`, *optional*, defaults to 1 GiB): bytes that one chunk of per-example gradients may take.
    """

    def __init__(
        self, replay: Replay, *, curvature: str, gn_scale: float = 1.0, finite: bool = True, budget: int = 1 << 30
    ):
        self.replay, self.curvature, self.finite, self.budget = replay, curvature, finite, budget
        self.curvature_scale = gn_scale if curvature == "gauss-newton" else 1.0
        manifest = replay.trajectory.manifest
        groups = [parameter.group for parameter in manifest.parameters]
        self.adjoint = adjoint_for(manifest.optimizer, replay.objective.sizes, groups)
        follows = self.adjoint.follows_second_moment and not replay.rounded
        self.follows_second_moment = follows and has_few_steps(replay.trajectory)

    def visits(self, queries: torch.Tensor) -> np.ndarray:
        """The influence `(n, k)` of each row through its own recorded visits: leave-one-out of this very run."""
        total = np.zeros((len(self.replay.rows), len(queries)))
        for swept in self.steps(queries, effects=True):
            assert swept.effects is not None
            np.add.at(total, swept.visits.rows, swept.effects.T.cpu().double().numpy())
        return total

    def segments(self, queries: torch.Tensor) -> list[Segment]:
        """The summed cotangents of each segment, from the first to the last."""
        middles = self.replay.middles
        sums = [torch.zeros_like(queries) for _ in middles]
        for swept in self.steps(queries, effects=False):
            own = sums[self.replay.segment_of(swept.step.index)]
            own.add_(swept.cotangents, alpha=float(swept.visits.weights.sum()))
        return [Segment(self.replay.theta(t), C) for t, C in zip(middles, sums, strict=True)]

    def steps(self, queries: torch.Tensor, *, effects: bool) -> Iterator[SweptStep]:
        """Sweeps `queries (k, p)` from the end of the run to the start of the window."""
        trajectory = self.replay.trajectory
        A, M = self.adjoint.start(queries.clone())
        V = torch.zeros_like(queries) if self.follows_second_moment else None
        length, largest = float(A.norm()), 0.0
        for step in tqdm(self.replay.steps()[::-1], desc="Sweeping the window", unit="step"):
            denominator, updates = self.replay.denominator(step.index), trajectory.updates_before(step.index)
            visits, theta = self.replay.batch(step), self.replay.theta(step.index)
            parts = _parts(self.replay, theta, visits) if V is not None or self.replay.clips(step) else None
            C = self.adjoint.step_adjoint_(A, M, step.learning_rates, denominator, updates)
            if V is not None and denominator is not None and parts is not None:
                C += self.adjoint.second_moment_adjoint_(
                    A,
                    V,
                    step.learning_rates,
                    denominator,
                    updates,
                    direction=self.replay.direction(step.index, self.adjoint),
                    gradient=parts.whole * clip_factor(step.grad_norm, self.replay.max_norm),
                    theta=theta,
                )
            self.adjoint.decay_adjoint_(A, C, step.learning_rates)
            yield self._through_gradient(step, visits, theta, parts, A, C, effects)
            largest = max(largest, float(A.norm()) / length)
        warn_of_growth(trajectory, largest)

    def _through_gradient(
        self,
        step: Step,
        visits: WeightedBatch,
        theta: torch.Tensor,
        parts: Parts | None,
        A: torch.Tensor,
        C: torch.Tensor,
        effects: bool,
    ) -> SweptStep:
        """Takes `C` through clipping and the step's gradient; adds the curvature term to `A`."""
        replay, batch, weights = self.replay, visits.batch, visits.weights
        clip, cotangents = None, C
        if parts is not None and replay.clips(step):
            clip = Clip(parts.whole, step.grad_norm, replay.max_norm)
            cotangents = clip.adjoint(C)
        work = step_work(
            replay.objective,
            theta,
            batch,
            weights,
            cotangents,
            self.curvature,
            dots=effects,
            parts=parts if effects and clip is not None else None,
            budget=self.budget,
        )
        if work.curved is not None:
            A.add_(work.curved, alpha=self.curvature_scale)
        found, removal = None, Removal(weights, visits.growth, visits.same)
        if work.dots is not None and work.along is not None and clip is not None and self.finite:
            found = clip.leave_one_out(C, work.dots, work.along, removal)
        elif work.dots is not None:
            found = removal.along(work.dots)
        return SweptStep(step, visits, cotangents, found)


def _parts(replay: Replay, theta: torch.Tensor, visits: WeightedBatch) -> Parts:
    """The step's gradient, by the groups of visits that share a denominator."""
    ends = torch.bincount(visits.groups).cumsum(0).tolist()
    slices = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    gradients = [
        batch_gradient(replay.objective, theta, visits.batch.part(own), visits.weights[own]) for own in slices
    ]
    return Parts(torch.stack(gradients), visits.groups)
