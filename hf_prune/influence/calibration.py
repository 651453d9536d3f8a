"""The ratio of the loss's curvature to that of the Gauss-Newton matrix, measured along the run's own steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from datasets.utils import tqdm
from torch.nn import functional

from hf_prune._core.devices import widest_float
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.micro_batches import most_rows, parts_of
from hf_prune.model.per_example import batch_gradient
from hf_prune.model.replay import Replay
from hf_prune.model.retreat import with_retreat
from hf_prune.model.token_head import in_chunks
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


_Side = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor | None] | None]
Losses = Callable[[torch.Tensor], torch.Tensor]


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
    return with_retreat(_measure, most_rows(replay.steps()), replay)


@torch.no_grad()
def _measure(at_once: int, replay: Replay) -> float:
    steps = replay.steps()
    chosen = [steps[int((i + 0.5) * len(steps) / SAMPLES)] for i in range(min(SAMPLES, len(steps)))]
    generator = torch.Generator().manual_seed(0)
    along, curved, straight = 1.0, 0.0, 0.0
    for step in tqdm(chosen, desc="Measuring curvature", unit="step"):
        probe = _Probe(replay, step, generator, at_once)
        if not probe.length > 0:
            continue
        if not NEAR[0] < probe.move(along) < NEAR[1]:
            along *= CHANGE / max(probe.change, 1e-3 * CHANGE)
            probe.move(along)
        curved += probe.share * probe.curved
        straight += probe.share * probe.straight
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
        change (`float`): root mean square change of a logit between the two sides, halved.
        curved, straight (`float`): the second difference of the objective, and that at logits in a straight line.
        length (`float`): squared length of the direction in the optimizer's metric.
        share (`float`): what the step's curvature along the direction counts.
    """

    def __init__(self, replay: Replay, step: Step, generator: torch.Generator, at_once: int):
        self.step, self.replay = step, replay
        visits = replay.batch(step).part(slice(EXAMPLES))
        self.theta = replay.theta(step.index).clone()  # it is moved
        self.parts = [(part, visits.weights[own]) for own, part in parts_of(replay.objective, visits.batch, at_once)]
        signs = (torch.randint(0, 2, (len(visits.batch),), generator=generator) * 2 - 1).to(visits.weights)
        g = batch_gradient(replay.objective, self.theta, visits.batch, visits.weights * signs, at_once)
        denominator = replay.denominator(step.index)
        # In place, here and in `move`: fresh memory of the parameters' size costs as much as the work on it.
        self.u = g.clone() if denominator is None else denominator.reciprocal_().mul_(g)
        self.length = float(g @ self.u)

    def move(self, along: float) -> float:
        """Computes the losses on both sides at this distance; returns `change`."""
        far = along / float(self.u.norm())
        found = []
        for part, own in self.parts:  # each on all sides before the next: logits of all parts may be many
            sides = [self._looked_at(part)]
            for step in (far, -2 * far):
                self.theta.add_(self.u, alpha=step)
                sides.append(self._looked_at(part))
            self.theta.add_(self.u, alpha=far)
            found += [_differences(*piece) for piece in self._pieces(part, own, sides)]
        self.curved, self.straight, squares, logits = torch.stack(found).sum(0).tolist()
        self.change = (squares / logits) ** 0.5 / 2
        self.share = self.step.learning_rates[0] / (far**2 * self.length)
        if self.replay.clips(self.step):
            self.share *= self.replay.max_norm / self.step.grad_norm
        return self.change

    def _looked_at(self, part: Batch) -> _Side:
        """What the model makes of some rows: hidden states and the head's values, or the logits."""
        objective = self.replay.objective
        values, head = objective.unflatten(self.theta), objective.token_head(part.inputs)
        with objective.first_derivatives():
            outputs = objective.outputs(values, part.inputs)
        if head is None:
            return outputs, None
        own = {name: values[name].clone() for name in (head.weight, head.bias) if name in values}  # theta is moved
        return outputs, head.values(objective.fixed | own)

    def _pieces(
        self, part: Batch, weights: torch.Tensor, sides: list[_Side]
    ) -> Iterator[tuple[Losses, torch.Tensor, list[torch.Tensor]]]:
        """Losses as functions of logits, their weights, and the logits on all sides: whole, or of few tokens."""
        loss = self.replay.objective.loss(part)
        targets = loss.targets(part.labels)
        if sides[0][1] is None or targets is None:
            yield lambda logits: loss.of(logits, part), weights, [_logits(*side) for side in sides]
            return
        counted = targets != IGNORED
        classes, items = targets[counted], counted.sum(1)
        each = (weights / items.clamp(min=1)).repeat_interleave(items)
        for own in in_chunks(len(classes), len(sides[0][1][0]), classes.device):

            def losses(logits: torch.Tensor, own: torch.Tensor = classes[own]) -> torch.Tensor:
                return functional.cross_entropy(logits, own, reduction="none", label_smoothing=loss.smoothing)

            yield losses, each[own], [_logits(outputs[counted][own], head) for outputs, head in sides]


def _logits(outputs: torch.Tensor, head: tuple[torch.Tensor, torch.Tensor | None] | None) -> torch.Tensor:
    return outputs if head is None else functional.linear(outputs, *head)


def _differences(losses: Losses, weights: torch.Tensor, sides: list[torch.Tensor]) -> torch.Tensor:
    """
    `(4,)`: the second difference of the weighted losses, and at logits in a straight line; the squared distance of the
    two sides, and the number of logits.
    """
    base, ahead, behind = sides
    line, middle, wide = (ahead - behind) / 2, losses(base), widest_float(base.device)
    second = [
        (losses(plus) - 2 * middle + losses(minus)).to(wide) @ weights.to(wide)
        for plus, minus in ((ahead, behind), (base + line, base - line))
    ]
    squares = 4 * line.flatten().dot(line.flatten()).to(wide)
    return torch.stack([*second, squares, squares.new_tensor(float(base.numel()))])
