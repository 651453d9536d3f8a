"""The recorded run computed again, as it was trained: what its objective was, and whether this is still the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from hf_prune._core.doubts import doubt
from hf_prune.errors import UnsupportedError
from hf_prune.model.micro_batches import most_rows
from hf_prune.model.objective import Objective
from hf_prune.model.retreat import with_retreat
from hf_prune.model.rows import Rows
from hf_prune.model.weights import Reduction, WeightedBatch
from hf_prune.trajectory.trajectory import Step, Trajectory

logger = logging.getLogger(__name__)

# Steps and micro-batches that are looked at, and how often where dropout, augmentation or masking are random.
STEPS, MICRO_BATCHES, DRAWS = 8, 64, 3
# Steps whose gradient is computed again, which takes three times as long as their losses.
GRADIENTS = 4
# Where losses at snapshots agree, the way between them is the likely cause.
INTERPOLATED = (
    "parameters between snapshots are interpolated, so record with more snapshots_per_epoch; if that does not help, "
)
# What may differ, as a share: at recorded parameters, in half precision, and between snapshots.
LOSS = {"exact": 0.01, "half": 0.05, "between": 0.1}
NORM = {"exact": 0.02, "half": 0.1, "between": 0.4}
# Draws may lie this many standard deviations apart.
DEVIATIONS = 3.0


class Run(Protocol):
    """What is asked of a recorded run: a part of [`Replay`]."""

    trajectory: Trajectory
    objective: Objective
    rows: Rows
    own_loss: bool

    @property
    def observed(self) -> list[Observed]: ...

    @property
    def reduction(self) -> Reduction: ...

    def steps(self) -> list[Step]: ...

    def theta(self, t: int) -> torch.Tensor: ...

    def row_of(self, ids: Iterable[int]) -> np.ndarray: ...

    def micro_batches(self, step: Step) -> list[WeightedBatch]: ...


@dataclass(frozen=True)
class Observed:
    """
    One step of the run, its losses computed again in training mode.

    Attributes:
        step (`Step`): the step.
        exact (`bool`): whether its parameters were recorded, not interpolated.
        losses (`torch.Tensor`, `(draws, B)`): the loss of each visit.
        items (`torch.Tensor`, `(B,)`): the items of each.
    """

    step: Step
    exact: bool
    losses: torch.Tensor
    items: torch.Tensor

    def objectives(self, reduction: Reduction) -> torch.Tensor:
        """Each micro-batch's part of the step's objective, `(draws, micro-batches)`."""
        sizes = [len(micro.ids) for micro in self.step.micro_batches]
        weighted = torch.where(self.items > 0, self.losses, 0) * reduction.weights(self.step, self.items)
        return torch.stack([part.sum(1) for part in weighted.split(sizes, 1)], 1).cpu().double()

    @property
    def recorded(self) -> torch.Tensor:
        """What was recorded of each, `(micro-batches,)`."""
        return torch.tensor([micro.loss for micro in self.step.micro_batches], dtype=torch.float64)


def observe(run: Run) -> list[Observed]:
    """The losses of some steps, spread over the window, again."""
    return with_retreat(_observe, most_rows(run.steps()), run)


def measure_reduction(run: Run) -> Reduction:
    """
    How the Trainer made one number of losses that are not the model's own: the recorded objective over their mean.

    Raises:
        `UnsupportedError`: if no objective was recorded.
    """
    seen = run.observed
    if not seen:
        raise UnsupportedError(
            "The run was trained on another loss than its model's, and what the gradient was taken of was not seen: "
            "take it with self.accelerator.backward(loss) in the Trainer, and record again."
        )
    seen = [one for one in seen if one.exact] or seen
    recorded = torch.cat([one.recorded for one in seen])
    fits = []
    for whole_step in (False, True):
        means = torch.cat([one.objectives(Reduction(whole_step, 1.0)).mean(0) for one in seen])
        factor = float(recorded @ means / (means @ means).clamp(min=1e-30))
        fits.append((float((recorded - factor * means).norm()), Reduction(whole_step, factor)))
    return fits[1][1] if fits[1][0] < 0.99 * fits[0][0] else fits[0][1]


def check_agreement(run: Run) -> None:
    """
    Compares the objective of micro-batches, and the gradient of steps, with what was recorded.

    Both are computed in training mode, where randomness is told from a difference by several draws. A warning says
    where they differ: it may be what the user wants, such as a view of the rows without chance.
    """
    seen = run.observed
    if not seen:
        return
    reduction = run.reduction
    for exact in (True, False):
        chosen = [one for one in seen if one.exact == exact]
        if not chosen:
            continue
        kind = ("half" if _half(run) else "exact") if exact else "between"
        recorded = torch.cat([one.recorded for one in chosen])
        again = torch.cat([one.objectives(reduction) for one in chosen], 1)
        off = _off(recorded, again, LOSS[kind])
        if off is None:
            continue
        doubt(
            logger,
            f"The objective of {len(recorded)} micro-batches, computed again, is {float(again.mean()):.4g} in the "
            f"mean where the run recorded {float(recorded.mean()):.4g} (off by {off:.0%}): "
            f"{'' if exact else INTERPOLATED}{_cause(run)}.",
        )
        return
    _check_gradients(run, seen)


def _check_gradients(run: Run, seen: list[Observed]) -> None:
    """Compares norms, of all that was trained: what is frozen or changed on the way shows there and nowhere else."""
    draws = len(seen[0].losses)
    for exact in (True, False):
        chosen = _spread([one.step for one in seen if one.exact == exact], GRADIENTS)
        if not chosen:
            continue
        kind = ("half" if _half(run) else "exact") if exact else "between"
        again = with_retreat(_norms, most_rows(run.steps()), run, chosen, draws)
        recorded = torch.tensor([step.grad_norm for step in chosen], dtype=torch.float64)
        off = _off(recorded, again.cpu().double(), NORM[kind])
        if off is None:
            continue
        still = _unmoved(run)
        why = (
            f"{still[0]!r} and {len(still) - 1} other parameters did not move, so they were frozen after training "
            "began; record with parameters= that leaves them out"
            if still
            else "parameters were frozen after training began, or a callback changed gradients; record with "
            "parameters= that leaves out what does not train"
        )
        doubt(
            logger,
            f"The gradient of {len(chosen)} steps, computed again, has norm {float(again.mean()):.3g} in the mean "
            f"where the run recorded {float(recorded.mean()):.3g}, though losses agree: {why}.",
        )
        return


def _off(recorded: torch.Tensor, again: torch.Tensor, tolerance: float) -> float | None:
    """How far `again (draws, n)` lies from `recorded (n,)`, as a share; `None` if no further than it may."""
    length = float(recorded.norm())
    apart = float((recorded - again.mean(0)).norm())
    noise = 0.0
    if len(again) > 1:
        noise = float((again.var(0).mean() * (1 + 1 / len(again))).sqrt()) * len(recorded) ** 0.5
    if not apart > tolerance * length + DEVIATIONS * noise:
        return None
    return apart / max(length, 1e-30)


def _observe(at_once: int, run: Run) -> list[Observed]:
    with torch.no_grad(), run.objective.in_training():
        chosen = [(s, exact) for s, exact in _chosen(run) if all(micro.loss is not None for micro in s.micro_batches)]
        first = [_losses(run, step, at_once, seed=0) for step, _ in chosen]
        # At the first step dropout may change nothing yet: an adapter begins as zero.
        ends = {place: _losses(run, chosen[place][0], at_once, seed=1)[0] for place in {0, len(chosen) - 1} if chosen}
        random = any(not torch.allclose(first[place][0], own, rtol=1e-4, atol=1e-6) for place, own in ends.items())
        found: list[Observed] = []
        for place, ((step, exact), (losses, items)) in enumerate(zip(chosen, first, strict=True)):
            again = [losses]
            for draw in range(1, DRAWS if random else 1):
                known = ends.get(place) if draw == 1 else None
                again.append(_losses(run, step, at_once, seed=draw)[0] if known is None else known)
            found.append(Observed(step, exact, torch.stack(again), items))
    return found


def _chosen(run: Run) -> Iterator[tuple[Step, bool]]:
    """Steps to look at, and whether their parameters are known to the last bit."""
    made = run.steps()
    if run.trajectory.manifest.unrecorded:
        yield from ((step, False) for step in made[-1:])  # what was not recorded is known at the end alone
        return
    known = set(run.trajectory.snapshot_steps)
    count = max(2, min(STEPS, MICRO_BATCHES // max(1, len(made[0].micro_batches))))
    exact = _spread([step for step in made if step.index in known], count)
    others = _spread([step for step in made if step.index not in known], count - len(exact))
    yield from ((step, True) for step in exact)
    yield from ((step, False) for step in others)


def _spread(steps: list[Step], count: int) -> list[Step]:
    places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
    return [steps[place] for place in places]


def _losses(run: Run, step: Step, at_once: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses and items `(B,)` of a step's visits, micro-batch by micro-batch as in training."""
    theta, losses, items = run.theta(step.index), [], []
    with _drawn(run, seed):
        for micro in step.micro_batches:
            batch = run.rows.batch(run.row_of(micro.ids).tolist())
            for start in range(0, len(batch), at_once):
                part = batch.part(slice(start, start + at_once))
                losses.append(run.objective.losses_in_chunks(theta, part))
                items.append(run.objective.items(part))
    return torch.cat(losses), torch.cat(items)


def _norms(at_once: int, run: Run, steps: list[Step], draws: int) -> torch.Tensor:
    """The norm `(draws, steps)` of each step's gradient over all that was trained."""
    with run.objective.in_training():
        return torch.tensor([[_norm(run, step, draw, at_once) for step in steps] for draw in range(draws)])


def _norm(run: Run, step: Step, seed: int, at_once: int) -> float:
    objective, fixed = run.objective, run.objective.fixed
    theta = run.theta(step.index).requires_grad_()
    others = {name: fixed[name].clone().requires_grad_() for name in run.trajectory.manifest.unrecorded}
    objective.fixed = fixed | others
    try:
        with _drawn(run, seed), torch.enable_grad():
            for micro in run.micro_batches(step):
                for start in range(0, len(micro.rows), at_once):
                    part = micro.part(slice(start, start + at_once))
                    if float(part.weights.abs().sum()) > 0:
                        (objective.losses_in_chunks(theta, part.batch) @ part.weights).backward()
    finally:
        objective.fixed = fixed
    gradients = [leaf.grad for leaf in (theta, *others.values()) if leaf.grad is not None]
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm()) if gradients else 0.0


@contextmanager
def _drawn(run: Run, draw: int) -> Iterator[None]:
    """One draw of what is random in the model and in the rows."""
    chance, before = run.rows.chance, run.rows.chance.number
    chance.number = draw if before is not None else None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(draw)
            yield
    finally:
        chance.number = before


def _half(run: Run) -> bool:
    manifest = run.trajectory.manifest
    return manifest.precision != "no" or manifest.snapshot_dtype != "float32" or run.objective.half


def _unmoved(run: Run) -> list[str]:
    """Recorded parameters that are the same after the first snapshot."""
    first, second = run.trajectory.snapshot_steps[:2]
    before, after = (run.objective.unflatten(run.theta(t)) for t in (first, second))
    return [name for name in before if torch.equal(before[name], after[name])]


def _cause(run: Run) -> str:
    """The likeliest reason why the objective is another one, and what to do."""
    manifest, given = run.trajectory.manifest, run.rows.collator
    here = getattr(given, "__name__", type(given).__name__)
    if run.own_loss:
        return (
            "loss= does not give what the Trainer took the mean of; return each row's own loss with all its terms, "
            "and where the mean is weighted a pair of these and the weights"
        )
    if given is not None and here != manifest.collator:
        return f"batches were made by {manifest.collator} in training and by {here} here; pass that data_collator"
    if given is None and manifest.collator not in ("default_data_collator", "DataCollatorWithPadding"):
        return f"batches were made by {manifest.collator} in training; pass it as data_collator"
    return (
        "the model weights rows or adds a term to its loss, or rows look otherwise than in training; pass the rows, "
        "the data_collator and the model of training and, where the loss is no plain mean, loss="
    )
