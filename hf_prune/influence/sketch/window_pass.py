"""The one pass over the window that needs the model: every visit's gradient and curvature factors, sketched."""

from __future__ import annotations

import shutil

import torch
from accelerate.utils import find_executable_batch_size
from datasets.utils import tqdm

from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.logit_factors import LogitFactor, logit_factors
from hf_prune.influence.sketch.per_example_vjp import PerExampleVjp
from hf_prune.influence.sketch.scales import GradientScales, Scales
from hf_prune.influence.sketch.store import StepSketch, Store
from hf_prune.model.batch import Batch
from hf_prune.model.replay import Replay
from hf_prune.trajectory.trajectory import Step

# Examples that go through the model at once; fewer where memory runs out.
MOST_AT_ONCE = 64
# The unscaled sketches that are kept are narrower by this factor, if they are wide.
NARROWER = 4
WIDE = 1 << 14
# Steps and examples of each that tell how many factors an example has.
SAMPLES, EXAMPLES = 4, 16


class WindowPass:
    """
    Sketches the steps of a window.

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
        """
        Sketches this process's share of the missing shards, and waits for the other processes.

        Raises:
            `OSError`: if the disk has no room for all that are missing.
        """
        with store.cache.processes.main_first():
            if store.cache.processes.rank == 0:
                self._check_room(store)
        find_executable_batch_size(self._run, starting_batch_size=MOST_AT_ONCE)(store)
        store.cache.processes.barrier()

    def missing_bytes(self, store: Store) -> int:
        """About the disk space of the shards that are still to be sketched, by the factors of a few steps."""
        shards = [self.replay.trajectory.step(t) for shard in store.missing() for t in shard]
        steps = [step for step in shards if not step.skipped]
        chosen = [steps[int((i + 0.5) * len(steps) / SAMPLES)] for i in range(min(SAMPLES, len(steps)))]
        factors = sum(map(self._count_factors, chosen)) / max(len(chosen), 1)
        return sum(step_bytes(factors * len(step.ids), self.sketch.width) for step in steps)

    def _count_factors(self, step: Step) -> int:
        some = self.replay.batch(step).batch.part(slice(EXAMPLES))
        with torch.no_grad():
            logits = self.objective.logits(self.replay.theta(step.index), some.inputs)
        return len(logit_factors(self.objective.loss(some), logits, some, torch.Generator().manual_seed(0)))

    def _check_room(self, store: Store) -> None:
        directory = store.cache.directory
        needed, free = self.missing_bytes(store), shutil.disk_usage(directory).free
        if needed > free:
            raise OSError(
                f"Sketching the window takes about {needed / 1e9:.3g} GB ({needed:,} bytes) of disk space in "
                f"{directory}, and {free / 1e9:.3g} GB are free: free some, or record a smaller window or fewer "
                "parameters."
            )

    def _run(self, at_once: int, store: Store) -> None:
        own = store.own_share()
        with tqdm(total=sum(map(len, own)), desc="Sketching the window", unit="step") as bar:
            for shard in own:
                scales = self.scales.at((shard.start + shard.stop) // 2)
                found = {}
                for t in shard:
                    step = self.replay.trajectory.step(t)
                    if not step.skipped:
                        found[t] = self._step(step, scales, at_once)
                    bar.update()
                store.write(shard, found)

    def _step(self, step: Step, scales: Scales, at_once: int) -> StepSketch:
        visits, theta = self.replay.batch(step), self.replay.theta(step.index)
        factors, examples, scaled, unscaled = [], [], [], []
        for start in range(0, len(visits.batch), at_once):
            part = visits.batch.part(slice(start, start + at_once))
            own, *sketches = self.batch(theta, part, scales, seed=step.index)
            factors += own
            scaled.append(sketches[0])
            unscaled.append(sketches[1])
            examples.append(start + torch.arange(len(part)).repeat(len(own)))
        whole = torch.cat(unscaled)
        return StepSketch(
            ids=torch.from_numpy(visits.rows),
            weights=visits.weights,
            growth=visits.growth,
            groups=visits.groups,
            sketches=torch.cat(scaled),
            unscaled=narrow(whole),
            gram=whole @ whole.T,
            examples=torch.cat(examples),
            gradient=torch.cat([factor.gradient for factor in factors]),
            curvature=torch.cat([factor.curvature for factor in factors]),
            log_scales=scales.log_means.clone(),
        )

    def batch(
        self, theta: torch.Tensor, batch: Batch, scales: Scales, *, seed: int
    ) -> tuple[list[LogitFactor], torch.Tensor, torch.Tensor]:
        """The logit factors of a batch and the sketches of their VJPs, scaled and unscaled, `(factors x B, d)`."""
        generator = torch.Generator().manual_seed(seed)
        with self.per_example.forward(theta, batch.inputs) as forward:
            factors = logit_factors(self.objective.loss(batch), forward.logits, batch, generator)
            found = [forward.vjp_both(factor.cotangents, scales.factors) for factor in factors]
        return factors, torch.cat([scaled for scaled, _ in found]), torch.cat([unscaled for _, unscaled in found])

    def shares(self) -> list[float]:
        """Each parameter's share of the squared norms of scaled gradients, at the window's first and last step."""
        steps = self.replay.steps()
        total = torch.zeros(len(self.sketch.sizes))
        for step in (steps[0], steps[-1]):
            scales = self.scales.at(step.index)
            batch = self.replay.rows.batch(self.replay.row_of(step.ids)[:MOST_AT_ONCE].tolist())
            sketches = self.batch(self.replay.theta(step.index), batch, scales, seed=step.index)[1]
            found = torch.stack([sketches[:, part].square().sum() for part in self.sketch.parts])
            total += (found / found.sum()).cpu()
        return total.tolist()


def step_bytes(vjps: float, width: int) -> int:
    """Disk space of a step's sketch: of each VJP two sketches of a byte an entry, and its row of the gram."""
    unscaled = width // NARROWER if width >= WIDE else width
    return int(vjps * (width + unscaled + 4 * vjps + 24))


def narrow(sketches: torch.Tensor) -> torch.Tensor:
    """Sketches `(R, d)` to narrower ones: buckets are summed again, since their signs are random already."""
    if sketches.shape[1] < WIDE:
        return sketches
    gap = -sketches.shape[1] % NARROWER
    return torch.nn.functional.pad(sketches, (0, gap)).view(len(sketches), NARROWER, -1).sum(1)


def widen(values: torch.Tensor, width: int) -> torch.Tensor:
    """The adjoint of [`narrow`], to vectors `(R, width)`."""
    return values if width < WIDE else values.repeat(1, NARROWER)[:, :width]
