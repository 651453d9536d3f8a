"""The reverse pass over the window that turns directions into what each visit, or each row, does to them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from datasets.utils import tqdm

from hf_prune.errors import UnsupportedError
from hf_prune.influence.clipping import Clip
from hf_prune.influence.dense.curvature import step_work
from hf_prune.influence.optimizers import update_for
from hf_prune.influence.optimizers.sgd import Sgd
from hf_prune.model.objective import Batch, Objective
from hf_prune.model.per_example import batch_gradient
from hf_prune.model.rows import Rows
from hf_prune.model.weights import visit_weights
from hf_prune.trajectory.trajectory import Step, Trajectory

logger = logging.getLogger(__name__)

# A recomputed gradient whose norm is off by more than this share is not that of the run.
NORM_TOLERANCE = 0.1

# Cotangents that grow so many times tell of a part of the run where a small change has no predictable end.
GROWTH_LIMIT = 100.0


@dataclass(frozen=True)
class Segment:
    """
    The summed cotangents of a stretch of steps: what a row does in expectation over the order of batches.

    Attributes:
        theta (`torch.Tensor`, `(p,)`): the parameters in the middle of the stretch.
        cotangents (`torch.Tensor`, `(k, p)`): the sum of the steps' gradient cotangents, each times the total
            weight of the step's examples.
    """

    theta: torch.Tensor
    cotangents: torch.Tensor


@dataclass(frozen=True)
class SweptStep:
    """One step: pulled cotangents `(k, p)`, the visits' weights `(B,)` and, if asked, effects of removal `(k, B)`."""

    step: Step
    cotangents: torch.Tensor
    weights: torch.Tensor
    effects: torch.Tensor | None


class Sweep:
    """
    Goes back over a trajectory's window (arXiv 1906.08473, algorithm 2, for k directions and any supported optimizer).

    Args:
        trajectory (`Trajectory`): the recorded run.
        objective (`Objective`): the model as a function of the recorded parameters.
        rows (`Rows`): the training rows; an id of the ledger is looked up by `positions`.
        positions (`dict[int, int]`, *optional*): row of each recorded id; by default an id is a row's position.
        curvature (`str`): one of `"none"`, `"fisher"`, `"gauss-newton"`, `"exact"`.
        finite (`bool`, *optional*, defaults to `True`):
            Whether effects hold the finite change that leaving a row out makes to the clipping factor, or its slope.
        budget (`int`, *optional*, defaults to 1 GiB): bytes that one chunk of per-example gradients may take.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        objective: Objective,
        rows: Rows,
        *,
        curvature: str,
        positions: dict[int, int] | None = None,
        finite: bool = True,
        own_loss: bool = False,
        budget: int = 1 << 30,
    ):
        self.trajectory, self.objective, self.rows = trajectory, objective, rows
        self.curvature, self.positions, self.finite = curvature, positions, finite
        self.own_loss, self.budget = own_loss, budget
        self.factor = 1.0  # what the Gauss-Newton matrix is multiplied by
        manifest = trajectory.manifest
        groups = [parameter.group for parameter in manifest.parameters]
        self.update = update_for(manifest.optimizer, objective.sizes, groups)
        self.max_norm = float(manifest.max_grad_norm or 0.0)

    def check(self) -> None:
        """
        Compares the gradient's norm at the window's first step with the recorded one, and warns where they differ.

        What makes them differ makes the scores differ too: dropout, BatchNorm, random augmentation or masking, a
        loss that is not the model's own, other frozen parameters than the trained model's.

        Raises:
            `UnsupportedError`: if the optimizer made no step in the window.
        """
        if all(self.trajectory.step(t).skipped for t in range(*self.trajectory.window)):
            raise UnsupportedError(
                "Every step of the recorded window was skipped for gradients that overflowed, so no row moved the "
                "model there: record a run that trains, or one with a larger window."
            )
        step = self.trajectory.step(self.trajectory.window[0])
        trainable = sum(p.numel() for p in self.objective.model.parameters() if p.requires_grad)
        if step.skipped or trainable != sum(self.objective.sizes):
            return  # the norm of parameters that were not recorded is unknown
        batch = self.rows.batch(self.row_of(step.ids).tolist())
        weights = self.weights(step, batch)
        norm = float(batch_gradient(self.objective, self.theta(step.index), batch, weights).norm())
        if abs(norm - step.grad_norm) > NORM_TOLERANCE * step.grad_norm:
            logger.warning(
                f"The gradient of step {step.index}, computed again, has norm {norm:.3g} where the run recorded "
                f"{step.grad_norm:.3g}: dropout, BatchNorm, random augmentation, a loss that is not the model's or "
                "another model make the scores less faithful; score the model that was trained, with the "
                "data_collator and loss that training used."
            )

    def visits(self, directions: torch.Tensor) -> np.ndarray:
        """The influence `(n, k)` of each row through its own recorded visits: leave-one-out of this very run."""
        total = np.zeros((len(self.rows), len(directions)))
        for swept in self.steps(directions, effects=True):
            assert swept.effects is not None
            np.add.at(total, self.row_of(swept.step.ids), swept.effects.T.double().cpu().numpy())
        return total

    def segments(self, directions: torch.Tensor) -> list[Segment]:
        """The summed cotangents of each stretch between two snapshots, from the first to the last."""
        marks = self.trajectory.snapshot_steps
        sums = [torch.zeros_like(directions) for _ in marks[1:]]
        for swept in self.steps(directions, effects=False):
            place = int(np.searchsorted(marks, swept.step.index, side="right")) - 1
            sums[place].add_(swept.cotangents, alpha=float(swept.weights.sum()))
        middles = [(a + b) // 2 for a, b in itertools.pairwise(marks)]
        return [Segment(self.theta(t), C) for t, C in zip(middles, sums, strict=True)]

    def steps(self, directions: torch.Tensor, *, effects: bool) -> Iterator[SweptStep]:
        """Sweeps `directions (k, p)` from the end of the run to the start of the window."""
        first, last = self.trajectory.window
        A, M = self.update.start(directions.clone())
        length, largest = float(A.norm()), 0.0
        for t in tqdm(range(last - 1, first - 1, -1), desc="Sweeping the window", unit="step"):
            step = self.trajectory.step(t)
            if step.skipped:
                continue
            denominator = self.denominator(t, directions)
            C = self.update.cotangent(A, M, step.learning_rates, denominator, self.trajectory.updates_before(t))
            self.update.pull_back(A, C, step.learning_rates)
            yield self._through_gradient(step, A, C, effects)
            largest = max(largest, float(A.norm()) / length)
        warn_of_growth(self.trajectory, largest)

    def _through_gradient(self, step: Step, A: torch.Tensor, C: torch.Tensor, effects: bool) -> SweptStep:
        """Takes `C` through clipping and the step's gradient; adds the curvature term to `A`."""
        theta = self.theta(step.index)
        batch = self.rows.batch(self.row_of(step.ids).tolist())
        weights = self.weights(step, batch)
        clip = None
        pulled = C
        if 0 < self.max_norm < step.grad_norm:
            clip = Clip(batch_gradient(self.objective, theta, batch, weights), step.grad_norm, self.max_norm)
            pulled = clip.pull(C)
        work = step_work(
            self.objective,
            theta,
            batch,
            weights,
            pulled,
            self.curvature,
            dots=effects,
            gradient=clip.gradient if clip and effects else None,
            budget=self.budget,
        )
        if work.curved is not None:
            A.add_(work.curved, alpha=self.factor if self.curvature == "gauss-newton" else 1.0)
        shifts = None
        if work.dots is not None and work.along is not None and clip is not None and self.finite:
            shifts = clip.leave_one_out(C, work.dots, work.along, weights)
        elif work.dots is not None:
            shifts = -weights * work.dots
        return SweptStep(step, pulled, weights, shifts)

    def row_of(self, ids: np.ndarray) -> np.ndarray:
        """The rows of recorded ids."""
        if self.positions is None:
            return ids
        return np.array([self.positions[int(i)] for i in ids])

    def denominator(self, t: int, like: torch.Tensor) -> torch.Tensor | None:
        """What the update of step t divides by, `(p,)`; `None` for SGD."""
        if isinstance(self.update, Sgd):
            return None
        moment = self.trajectory.second_moment_at(t + 1).to(like)
        return self.update.denominator(moment, self.trajectory.updates_before(t))

    def theta(self, t: int) -> torch.Tensor:
        return self.trajectory.parameters_at(t).to(self.objective.device, self.objective.dtype)

    def weights(self, step: Step, batch: Batch) -> torch.Tensor:
        items = self.objective.items(batch)
        uses = any(micro.num_items is not None for micro in step.micro_batches) and self.objective.uses_items(batch)
        return visit_weights(step, items, uses, self.own_loss)


def warn_of_growth(trajectory: Trajectory, growth: float) -> None:
    """Warns where cotangents grew so much, as a ratio, that what they tell is noise."""
    if growth <= GROWTH_LIMIT:
        return
    first, last = trajectory.window
    logger.warning(
        f"The sweep's cotangents grew {growth:.0f}-fold over steps {first} to {last}: this part of the run "
        "is chaotic, and scores hold more noise than influence; record with a smaller window, such as "
        f"window={0.5 * (last - first) / trajectory.manifest.total_steps:.2f}."
    )
