"""The one pass over the window that needs the model: every visit's gradient and curvature factors, sketched."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from datasets.utils import tqdm

from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.forward_pass import FactorSketches
from hf_prune.influence.sketch.logit_factors import logit_factors, random_draws
from hf_prune.influence.sketch.per_example_vjp import PerExampleVjp
from hf_prune.influence.sketch.scales import GradientScales, Scales
from hf_prune.influence.sketch.store import StepSketch, Store, packed
from hf_prune.model.batch import Batch
from hf_prune.model.micro_batches import most_rows, parts_of
from hf_prune.model.replay import Replay
from hf_prune.model.retreat import with_retreat
from hf_prune.trajectory.trajectory import Step

# Visits that tell where the gradients' squared norms are.
LOOKED_AT = 64
# The unscaled sketches that are kept are narrower by this factor, if they are wide.
NARROWER = 4
WIDE = 1 << 14
# Steps and examples of each that tell how many factors an example has.
SAMPLES, EXAMPLES = 4, 16


class WindowPass:
    """
    Sketches the steps of a window.

    As many tokens go through the model at once as in the run's own micro-batches, and fewer where memory runs out.

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        sketch (`CountSketch`): of the recorded parameters.
        bf16 (`bool`): whether gradients are computed in bfloat16; sketches and all that follows are float32.
    """

    def __init__(self, replay: Replay, sketch: CountSketch, *, bf16: bool):
        self.replay, self.sketch, self.scales = replay, sketch, GradientScales(replay)
        self.objective = replay.objective
        self.per_example = PerExampleVjp(replay.objective, sketch, bf16=bf16)

    def run(self, store: Store) -> None:
        """Sketches this process's share of the missing shards, and waits for the other processes."""
        with_retreat(self._run, most_rows(self.replay.steps()), store)
        store.cache.processes.barrier()

    def missing_bytes(self, store: Store) -> list[int]:
        """About the disk space of what is to be sketched of each segment, by the factors of a few steps."""
        missing = set(store.missing())
        segments = [
            [
                self.replay.trajectory.step(t)
                for shard in own
                if shard in missing
                for t in shard
                if len(store.rows_of(t))
            ]
            for own in store.segments
        ]
        steps = list(chain.from_iterable(segments))
        chosen = [steps[int((i + 0.5) * len(steps) / SAMPLES)] for i in range(min(SAMPLES, len(steps)))]
        factors = sum(with_retreat(self._count_factors, EXAMPLES, step, store.curved) for step in chosen)
        each = factors / max(len(chosen), 1)
        return [sum(step_bytes(each * len(step.ids), self.sketch.width) for step in own) for own in segments]

    def _count_factors(self, at_once: int, step: Step, curved: bool) -> int:
        if not curved:
            return 1
        some = self.replay.batch(step).batch.part(slice(at_once))
        loss = self.objective.loss(some)
        if loss.targets(some.labels) is not None and self.objective.token_head(some.inputs) is not None:
            return 2  # the gradient, and labels drawn from the model
        with torch.no_grad(), self.objective.first_derivatives():
            logits = self.objective.logits(self.replay.theta(step.index), some.inputs)
        return len(logit_factors(loss, logits, some, random_draws(some, torch.Generator().manual_seed(0))))

    def _run(self, at_once: int, store: Store) -> None:
        own = store.own_share()
        with tqdm(total=sum(map(len, own)), desc="Sketching the window", unit="step") as bar:
            for shard in own:
                scales = self.scales.at((shard.start + shard.stop) // 2)
                found = {}
                for t in shard:
                    wanted = store.rows_of(t)
                    if len(wanted):
                        step = self.replay.trajectory.step(t)
                        found[t] = packed(self._step(step, wanted, scales, at_once, store.curved))
                    bar.update()
                store.write(shard, found)

    def _step(self, step: Step, wanted: np.ndarray, scales: Scales, at_once: int, curved: bool) -> StepSketch:
        """The sketches of a step's visits of the `wanted` rows."""
        visits, theta = self.replay.batch(step), self.replay.theta(step.index)
        if len(wanted) < len(visits.rows):
            visits = visits.part(torch.from_numpy(np.flatnonzero(np.isin(visits.rows, wanted))))
        found, numbers = [], []
        for own, factors in self.batch(theta, visits.batch, scales, at_once, seed=step.index, curved=curved):
            found += factors
            numbers += [own] * len(factors)
        whole = torch.cat([factor.unscaled for factor in found])
        return StepSketch(
            ids=torch.from_numpy(visits.rows),
            weights=visits.weights,
            growth=visits.growth,
            groups=visits.groups,
            sketches=torch.cat([factor.scaled for factor in found]),
            unscaled=narrow(whole),
            gram=whole @ whole.T,
            examples=torch.cat(numbers),
            gradient=torch.cat([factor.gradient for factor in found]),
            curvature=torch.cat([factor.curvature for factor in found]),
            log_scales=scales.log_means.clone(),
        )

    def batch(
        self, theta: torch.Tensor, batch: Batch, scales: Scales, at_once: int, *, seed: int, curved: bool
    ) -> Iterator[tuple[torch.Tensor, list[FactorSketches]]]:
        """The sketched logit factors of a batch, part by part, each with the numbers of its examples."""
        draws, loss = random_draws(batch, torch.Generator().manual_seed(seed)), self.objective.loss(batch)
        for own, part in parts_of(self.objective, batch, at_once):
            with self.per_example.forward(theta, part.inputs) as forward:
                yield own, forward.factor_sketches(loss, part, scales.factors, draws[own], curved=curved)

    def shares(self) -> list[float]:
        """Each parameter's share of the squared norms of scaled gradients, at the window's first and last step."""
        return with_retreat(self._shares, most_rows(self.replay.steps()))

    def _shares(self, at_once: int) -> list[float]:
        steps = self.replay.steps()
        total = torch.zeros(len(self.sketch.sizes))
        for step in (steps[0], steps[-1]):
            scales = self.scales.at(step.index)
            batch = self.replay.rows.batch(self.replay.row_of(step.ids)[:LOOKED_AT].tolist())
            theta, found = self.replay.theta(step.index), self.sketch.buffer.new_zeros(len(self.sketch.sizes))
            for _, factors in self.batch(theta, batch, scales, at_once, seed=step.index, curved=False):
                squares = factors[0].scaled.square().sum(0)
                found += torch.stack([squares[part].sum() for part in self.sketch.parts])
            total += (found / found.sum().clamp(min=1e-30)).cpu()
        return total.tolist() if total.any() else [float(size) for size in self.replay.objective.sizes]


def step_bytes(vjps: float, width: int) -> int:
    """Disk space of a step's sketch: of each VJP two sketches of a byte an entry, and its row of the gram."""
    return int(vjps * (width + narrow_width(width) + 4 * vjps + 24))


def narrow_width(width: int) -> int:
    """That of what [`narrow`] makes of sketches."""
    return -(-width // NARROWER) if width >= WIDE else width


def narrow(sketches: torch.Tensor) -> torch.Tensor:
    """Sketches `(R, d)` to narrower ones: buckets are summed again, since their signs are random already."""
    if sketches.shape[1] < WIDE:
        return sketches
    gap = -sketches.shape[1] % NARROWER
    return torch.nn.functional.pad(sketches, (0, gap)).view(len(sketches), NARROWER, -1).sum(1)


def widen(values: torch.Tensor, width: int) -> torch.Tensor:
    """The adjoint of [`narrow`], to vectors `(R, width)`."""
    return values if width < WIDE else values.repeat(1, NARROWER)[:, :width]
