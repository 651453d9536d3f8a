"""How much the loss curves along the run's own directions, beside what Gauss-Newton sees of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from datasets.utils import tqdm

if TYPE_CHECKING:
    from hf_prune.influence.dense.sweep import Sweep

logger = logging.getLogger(__name__)

# Steps of the window that are looked at, each about the work of two training steps.
SAMPLES = 8
# Examples of a step that are looked at.
EXAMPLES = 32
# Root mean square change of a logit that a difference is taken over: far above rounding, small for the network.
CHANGE = 0.1
# Where a probe's change lies outside of these, it is taken again.
NEAR = (0.03, 0.3)
# A factor beyond these tells of a run that one factor does not describe.
LEAST, MOST = 0.5, 4.0


@torch.no_grad()
def curvature_factor(sweep: Sweep) -> float:
    """
    By how much to multiply the Gauss-Newton matrix so that it curves as the objective itself, on the mean over a run.

    What Gauss-Newton leaves out, `sum_i dl_i/dz d^2 z / d theta^2`, is no small thing where rows are not fitted yet.
    Along a direction u both are second differences: of the loss at the network's logits, and of the loss at logits
    that go on in a straight line. u is what leaving rows out pushes along, the optimizer's own step from the examples'
    gradients with random signs: for them `u^T H u` is the mean over single examples. Steps count by learning rate, and
    lengths are those of the optimizer's metric.

    Args:
        sweep (`Sweep`): knows the trajectory, the objective, the rows and their weights.

    Returns:
        `float`: between 0.5 and 4; 1 where the network is linear in its parameters.
    """
    trajectory = sweep.trajectory
    steps = [t for t in range(*trajectory.window) if not trajectory.step(t).skipped]
    chosen = [steps[int((i + 0.5) * len(steps) / SAMPLES)] for i in range(min(SAMPLES, len(steps)))]
    generator = torch.Generator().manual_seed(0)
    along, curved, straight = 1.0, 0.0, 0.0
    for t in tqdm(chosen, desc="Measuring curvature", unit="step"):
        probe = _Probe(sweep, t, generator)
        if not probe.length > 0:
            continue
        if not NEAR[0] < probe.move(along) < NEAR[1]:
            along *= CHANGE / max(probe.change, 1e-3 * CHANGE)
            probe.move(along)
        curved += probe.share * probe.second(probe.ahead, probe.behind)
        line = (probe.ahead - probe.behind) / 2
        straight += probe.share * probe.second(probe.base + line, probe.base - line)
    if not straight > 0:
        return 1.0
    found = curved / straight
    if not LEAST <= found <= MOST:
        logger.warning(
            f"Along this run's steps the loss curves {found:.2g} times as much as Gauss-Newton tells, more than a "
            "factor mends: single scores are rough; a later window, or curvature='exact', would be more faithful."
        )
    return min(max(found, LEAST), MOST)


class _Probe:
    """
    One step's loss along a direction.

    Attributes:
        base (`torch.Tensor`): the logits of the step's batch; `ahead` and `behind` those on either side.
        change (`float`): root mean square change of a logit between them, halved.
        length (`float`): squared length of the direction in the optimizer's metric.
        share (`float`): what the step's curvature along the direction counts.
    """

    def __init__(self, sweep: Sweep, t: int, generator: torch.Generator):
        self.step, self.sweep = sweep.trajectory.step(t), sweep
        batch = sweep.rows.batch(sweep.row_of(self.step.ids).tolist())
        self.batch, self.weights = batch.part(slice(EXAMPLES)), sweep.weights(self.step, batch)[:EXAMPLES]
        self.theta = sweep.theta(t).clone()  # it is moved
        signs = (torch.randint(0, 2, (len(self.batch),), generator=generator) * 2 - 1).to(self.weights)
        self._losses = sweep.objective.loss(self.batch).losses
        with torch.enable_grad():
            self.theta.requires_grad_()
            logits = sweep.objective.logits(self.theta, self.batch.inputs)
            [g] = torch.autograd.grad(self._losses(logits, self.batch.labels) @ (self.weights * signs), self.theta)
            self.theta.requires_grad_(False)
        self.base = logits.detach()
        denominator = sweep.denominator(t, g)
        # In place, here and in `move`: fresh memory of the parameters' size costs as much as the work on it.
        self.u = g.clone() if denominator is None else denominator.reciprocal_().mul_(g)
        self.length = float(g @ self.u)

    def move(self, along: float) -> float:
        """Looks on both sides at this distance; returns `change`."""
        far = along / float(self.u.norm())
        self.ahead = self.sweep.objective.logits(self.theta.add_(self.u, alpha=far), self.batch.inputs)
        self.behind = self.sweep.objective.logits(self.theta.add_(self.u, alpha=-2 * far), self.batch.inputs)
        self.theta.add_(self.u, alpha=far)
        self.change = float((self.ahead - self.behind).square().mean().sqrt()) / 2
        self.share = self.step.learning_rates[0] / (far**2 * self.length)
        if 0 < self.sweep.max_norm < self.step.grad_norm:
            self.share *= self.sweep.max_norm / self.step.grad_norm
        return self.change

    def second(self, plus: torch.Tensor, minus: torch.Tensor) -> float:
        """The second difference of the step's objective between these logits."""
        parts = [self._losses(logits, self.batch.labels) for logits in (plus, self.base, minus)]
        return float((parts[0] - 2 * parts[1] + parts[2]).double() @ self.weights.double())
