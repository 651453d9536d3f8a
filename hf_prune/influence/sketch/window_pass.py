"""The one pass over the window that needs the model: every visit's gradient and curvature factors, sketched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import find_executable_batch_size
from datasets.utils import tqdm

from hf_prune.influence.dense.sweep import Sweep
from hf_prune.influence.optimizers.sgd import Sgd
from hf_prune.influence.sketch.count_sketch import Projection
from hf_prune.influence.sketch.logit_factors import Round, loss_rounds
from hf_prune.influence.sketch.per_example_vjp import Pulls
from hf_prune.influence.sketch.store import StepSketch, Store
from hf_prune.model.objective import Batch

# Examples that go through the model at once; fewer where memory runs out.
MOST_AT_ONCE = 64
# Steps that share one scale of the gradients, and one file.
STRETCH = 8
# The plain sketches that are kept are narrower by this factor, if they are wide.
NARROWER = 4
WIDE = 1 << 14
# Entries of a parameter that its mean scale is taken over.
SAMPLED = 4096


class WindowPass:
    """
    Sketches the steps of a window.

    Args:
        sweep (`Sweep`): knows the trajectory, the objective, the rows, and their weights.
        projection (`Projection`): of the recorded parameters.
        half (`bool`): whether gradients are computed in bfloat16; sketches and all that follows are float32.
    """

    def __init__(self, sweep: Sweep, projection: Projection, *, half: bool):
        self.sweep, self.projection = sweep, projection
        self.objective, self.trajectory = sweep.objective, sweep.trajectory
        self.pulls = Pulls(sweep.objective, projection, half=half)
        self._reference: list[torch.Tensor] = []
        self._dead: torch.Tensor | None = None

    def run(self, store: Store, rank: int, world: int) -> None:
        """Works this process's share of the stretches that are missing."""
        find_executable_batch_size(self._run, starting_batch_size=MOST_AT_ONCE)(store, rank, world)

    def _run(self, at_once: int, store: Store, rank: int, world: int) -> None:
        missing = set(store.missing())
        own = [stretch for stretch in store.stretches[rank::world] if stretch in missing]
        with tqdm(total=sum(map(len, own)), desc="Sketching the window", unit="step") as bar:
            for stretch in own:
                scales, levels = self.scales((stretch.start + stretch.stop) // 2)
                steps = {}
                for t in stretch:
                    if not self.trajectory.step(t).skipped:
                        steps[t] = self._step(t, scales, levels, at_once)
                    bar.update()
                store.write(stretch, steps)

    def _step(self, t: int, scales: Sequence[torch.Tensor | None], levels: torch.Tensor, at_once: int) -> StepSketch:
        step = self.trajectory.step(t)
        ids = self.sweep.row_of(step.ids)
        batch = self.sweep.rows.batch(ids.tolist())
        weights = self.sweep.weights(step, batch)
        theta, rounds, examples, found = self.sweep.theta(t), [], [], []
        for start in range(0, len(batch), at_once):
            part = batch.part(slice(start, start + at_once))
            own, *sketches = self.batch(theta, part, scales, seed=t)
            rounds += own
            found.append(sketches)
            examples.append(start + torch.arange(len(part)).repeat(len(own)))
        rows, plain = (torch.cat(parts) for parts in zip(*found, strict=True))
        return StepSketch(
            ids=torch.from_numpy(ids),
            weights=weights,
            rows=rows,
            plain=narrow(plain),
            gram=plain @ plain.T,
            examples=torch.cat(examples),
            slopes=torch.cat([r.slopes for r in rounds]),
            factors=torch.cat([r.factors for r in rounds]),
            levels=levels.clone(),
        )

    def batch(
        self, theta: torch.Tensor, batch: Batch, scales: Sequence[torch.Tensor | None], *, seed: int
    ) -> tuple[list[Round], torch.Tensor, torch.Tensor]:
        """The rounds of a batch and their sketches, scaled and plain, each `(rounds x B, d)`."""
        generator = torch.Generator().manual_seed(seed)
        with self.pulls.forward(theta, batch.inputs) as forward:
            rounds = loss_rounds(self.objective.loss(batch), forward.logits, batch.labels, generator)
            pulled = [forward.pull(r.cotangents, scales, plain=True) for r in rounds]
        plain = [p for _, p in pulled if p is not None]
        return rounds, torch.cat([scaled for scaled, _ in pulled]), torch.cat(plain)

    def shares(self) -> list[float]:
        """Each parameter's share of the squared norms of scaled gradients, at the window's first and last step."""
        first, last = self.trajectory.window
        steps = [t for t in range(first, last) if not self.trajectory.step(t).skipped]
        total = torch.zeros(len(self.projection.sizes))
        for t in (steps[0], steps[-1]):
            step, scales = self.trajectory.step(t), self.scales(t)[0]
            batch = self.sweep.rows.batch(self.sweep.row_of(step.ids)[:MOST_AT_ONCE].tolist())
            rows = self.batch(self.sweep.theta(t), batch, scales, seed=t)[1]
            found = torch.stack([rows[:, part].square().sum() for part in self.projection.parts])
            total += (found / found.sum()).cpu()
        return total.tolist()

    def scales(self, t: int) -> tuple[list[torch.Tensor | None], torch.Tensor]:
        """
        What the gradients of steps around `t` are multiplied by, and its mean logarithm in each parameter.

        It is the optimizer's denominator to the power -1/2: between two gradients so scaled lies the update's own
        metric. The mean is weighted by the second moment at the end of the window, where gradients are large.
        """
        update, last = self.sweep.update, self.trajectory.window[1]
        sizes = self.objective.sizes
        if isinstance(update, Sgd):
            return [None] * len(sizes), torch.zeros(len(sizes))
        device, t = self.objective.device, min(t, last - 1)
        moment = self.trajectory.second_moment_at(t + 1).to(device)
        scale = update.denominator(moment, self.trajectory.updates_before(t)).rsqrt_()
        if self._dead is None:
            final = self.trajectory.second_moment_at(last).to(device)
            self._dead, self._reference = final == 0, self._sampled(final + 1e-30)
        # What never had a gradient never moves, and with a scale so large it would drown all else: the words, say,
        # that only held-out rows have.
        scale.masked_fill_(self._dead, 0)
        parts = zip(self._sampled(scale), self._reference, strict=True)
        levels = torch.stack([(part.clamp(min=1e-30).log() * v).sum() / v.sum() for part, v in parts])
        return list(scale.split(sizes)), levels.cpu()

    def _sampled(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Some thousand entries of each parameter, evenly spread."""
        return [part[:: max(1, len(part) // SAMPLED)] for part in vector.split(self.objective.sizes)]


def narrow(sketches: torch.Tensor) -> torch.Tensor:
    """Sketches `(R, d)` to narrower ones: buckets are summed again, since their signs are random already."""
    if sketches.shape[1] < WIDE:
        return sketches
    gap = -sketches.shape[1] % NARROWER
    return torch.nn.functional.pad(sketches, (0, gap)).view(len(sketches), NARROWER, -1).sum(1)
