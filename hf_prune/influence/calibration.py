"""The ratio of the loss's curvature to that of the Gauss-Newton matrix, measured along the run's own steps."""

from __future__ import annotations

import logging

import torch
from datasets.utils import tqdm

from hf_prune.model.replay import Replay
from hf_prune.trajectory.trajectory import Step

logger = logging.getLogger(__name__)

# Steps of the window that are looked at, each about the work of two training steps.
SAMPLES = 8
# Examples of a step that are looked at.
EXAMPLES = 32
# Root mean square change of a logit that a difference is taken over: far above rounding, small for the network.
CHANGE = 0.1
# Where a probe's change lies outside of these, it is taken again.
NEAR = (0.03, 0.3)
# A ratio beyond these belongs to a run that one ratio does not describe.
LEAST, MOST = 0.5, 4.0


@torch.no_grad()
def measure_gn_scale(replay: Replay) -> float:
    """
    By how much to multiply the Gauss-Newton matrix so that it curves as the objective itself, on the mean over a run.

    What Gauss-Newton leaves out, `sum_i dl_i/dz d^2 z / d theta^2`, is large where rows are not fitted yet.
    Along a direction u both are second differences: of the loss at the network's logits, and of the loss at logits
    that go on in a straight line. u is what leaving rows out pushes along, the optimizer's own step from the examples'
    gradients with random signs: for them `u^T H u` is the mean over single examples. Steps count by learning rate, and
    lengths are those of the optimizer's metric.

    Args:
        replay (`Replay`): the recorded run with its model and rows.

    Returns:
        `float`: between 0.5 and 4; 1 where the network is linear in its parameters.
    """
    steps = replay.steps()
    chosen = [steps[int((i + 0.5) * len(steps) / SAMPLES)] for i in range(min(SAMPLES, len(steps)))]
    generator = torch.Generator().manual_seed(0)
    along, curved, straight = 1.0, 0.0, 0.0
    for step in tqdm(chosen, desc="Measuring curvature", unit="step"):
        probe = _Probe(replay, step, generator)
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
            f"Along this run's steps the loss curves {found:.2g} times as much as Gauss-Newton predicts, more than a "
            "factor can correct: single scores are rough; use a later window, or curvature='exact', instead."
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

    def __init__(self, replay: Replay, step: Step, generator: torch.Generator):
        self.step, self.replay = step, replay
        visits = replay.batch(step).part(slice(EXAMPLES))
        self.batch, self.weights = visits.batch, visits.weights
        self.theta = replay.theta(step.index).clone()  # it is moved
        signs = (torch.randint(0, 2, (len(self.batch),), generator=generator) * 2 - 1).to(self.weights)
        self._loss = replay.objective.loss(self.batch)
        with torch.enable_grad():
            self.theta.requires_grad_()
            logits = replay.objective.logits(self.theta, self.batch.inputs)
            [g] = torch.autograd.grad(self._loss.of(logits, self.batch) @ (self.weights * signs), self.theta)
            self.theta.requires_grad_(False)
        self.base = logits.detach()
        denominator = replay.denominator(step.index)
        # In place, here and in `move`: fresh memory of the parameters' size costs as much as the work on it.
        self.u = g.clone() if denominator is None else denominator.reciprocal_().mul_(g)
        self.length = float(g @ self.u)

    def move(self, along: float) -> float:
        """Computes the logits on both sides at this distance; returns `change`."""
        far = along / float(self.u.norm())
        self.ahead = self.replay.objective.logits(self.theta.add_(self.u, alpha=far), self.batch.inputs)
        self.behind = self.replay.objective.logits(self.theta.add_(self.u, alpha=-2 * far), self.batch.inputs)
        self.theta.add_(self.u, alpha=far)
        self.change = float((self.ahead - self.behind).square().mean().sqrt()) / 2
        self.share = self.step.learning_rates[0] / (far**2 * self.length)
        if self.replay.clips(self.step):
            self.share *= self.replay.max_norm / self.step.grad_norm
        return self.change

    def second(self, plus: torch.Tensor, minus: torch.Tensor) -> float:
        """The second difference of the step's objective between these logits."""
        parts = [self._loss.of(logits, self.batch) for logits in (plus, self.base, minus)]
        return float((parts[0] - 2 * parts[1] + parts[2]).double() @ self.weights.double())
