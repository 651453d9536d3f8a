"""Steps whose loss or gradient stands out of those around them, and the micro-batches and rows behind them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_prune.trajectory.trajectory import MicroBatch, Trajectory
from hf_prune.trajectory.visits import Visits, read_visits

# Steps on each side that tell what is usual, and those that tell how far from it is usual.
NEAR, AROUND = 4, 16
# Steps at the start that have too few before them to be compared with, and the fewest of a run.
SKIPPED, FEWEST = 2, 8
# Deviations from the median, in standard deviations as the median absolute deviation gives them.
THRESHOLD = 6.0
# Of a normal distribution, and the least deviation as a share of the median: steps that are all alike have none.
_MAD, _LEAST = 1.4826, 0.05
# Micro-batches and rows that are named.
MOST = 5


@dataclass(frozen=True)
class SpikeRow:
    """
    A row of a spike's step.

    Args:
        id (`int`): The row, as the ledger names it.
        loss (`float`): Its loss in that step.
        deviation (`float`): How far that lies above the median of the visits around, in standard deviations.
        error_norm (`float`, *optional*): Length of the probabilities minus the label, where that is known.
    """

    id: int
    loss: float
    deviation: float
    error_norm: float | None


@dataclass(frozen=True)
class SpikeBatch:
    """
    A micro-batch of a spike's step.

    Args:
        rank (`int`): The process.
        loss (`float`, *optional*): Its part of the step's objective.
        ids (`tuple[int, ...]`): Its rows.
    """

    rank: int
    loss: float | None
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Spike:
    """
    One step that stands out.

    Args:
        step (`int`): The step, counted from 0.
        epoch (`float`): Epochs done after it.
        signal (`str`): `"loss"` or `"grad_norm"`, whichever stands out more.
        value (`float`): Of that signal.
        usual (`float`): Its median over the steps around.
        deviation (`float`): How far the value lies above, in standard deviations; infinite if it is not finite.
        whole_step (`bool`, *optional*): Whether the step's median row lost unusually much too: then an earlier update
            moved the model, and the rows before deserve a look. `None` without statistics of rows.
        batches (`tuple[SpikeBatch, ...]`): Its micro-batches, that of the largest loss first.
        rows (`tuple[SpikeRow, ...]`): Its rows, that of the largest loss first; empty without statistics of rows.
    """

    step: int
    epoch: float
    signal: str
    value: float
    usual: float
    deviation: float
    whole_step: bool | None
    batches: tuple[SpikeBatch, ...]
    rows: tuple[SpikeRow, ...]


@dataclass(frozen=True)
class Spikes:
    """
    What [`find_spikes`] found.

    Args:
        spikes (`tuple[Spike, ...]`): In the order of the steps.
        notes (`tuple[str, ...]`): What could not be looked at, and why.
    """

    spikes: tuple[Spike, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: numbers that are not finite are `None`."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def find_spikes(trajectory: Trajectory, *, threshold: float = THRESHOLD) -> Spikes:
    """
    Finds the steps whose loss, or norm of the gradient before clipping, lies far above those of the steps around.

    What is usual is the median of 4 steps on each side, and how far from it is usual the median absolute deviation of
    16 on each side, so that spikes do not hide each other, and a loss that falls is none. The first two steps are not
    judged.

    Args:
        trajectory ([`Trajectory`]): The recorded run; rows are known with `row_statistics=True`, micro-batches always.
        threshold (`float`, *optional*, defaults to 6.0): Deviations in standard deviations from which a step is named.
    """
    steps = trajectory.steps()
    if len(steps) <= FEWEST:
        return Spikes((), (f"The run has {len(steps)} steps, too few to tell what is usual.",))
    signals, notes = {"grad_norm": np.array([step.grad_norm for step in steps])}, []
    losses = [[micro.loss for micro in step.micro_batches] for step in steps]
    if any(loss is None for own in losses for loss in own):
        notes.append("The loss of micro-batches was not recorded: the Trainer took no gradient through accelerate.")
    else:
        signals["loss"] = np.array([sum(own) for own in losses])  # type: ignore[arg-type]
    visits, failure = None, trajectory.manifest.no_statistics
    if trajectory.manifest.row_statistics and failure is None:
        visits = read_visits(trajectory)
    elif failure is not None:
        notes.append(f"There are no statistics of rows, so only micro-batches are named. {failure}")
    else:
        notes.append(
            "Statistics of rows were not recorded, so only micro-batches are named: train with "
            "TrajectoryCallback(..., row_statistics=True)."
        )
    found = []
    compared = {name: _compared(values) for name, values in signals.items()}
    for number, step in enumerate(steps):
        name = max(compared, key=lambda signal: (compared[signal][1][number], signal))
        usual, deviations = (values[number] for values in compared[name])
        if deviations > threshold:
            whole, rows = (None, ()) if visits is None else _rows(visits, step.index, threshold)
            value = float(signals[name][number])
            batches = tuple(sorted(map(_batch, step.micro_batches), key=_largest_first))[:MOST]
            found.append(
                Spike(step.index, step.epoch, name, value, float(usual), float(deviations), whole, batches, rows)
            )
    return Spikes(tuple(found), tuple(notes))


def _compared(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median of the nearest steps `(T,)`, and how far above it each step lies."""
    usual = np.array([_usual(values, place) for place in range(len(values))])
    beyond, deviations = values - usual, np.zeros(len(values))
    for place in range(SKIPPED, len(values)):
        others = _around(beyond, place, AROUND, AROUND)
        least = _LEAST * abs(usual[place])
        deviations[place] = _deviation(beyond[place], others, least)
    return usual, deviations


def _usual(values: np.ndarray, place: int) -> float:
    """Of as many steps before as after, so that a trend is none; at the end of those before."""
    last = len(values) - 1
    after = min(NEAR, last - place)
    before = NEAR if after < SKIPPED else min(place, after)
    others = _around(values, place, before, after if after >= SKIPPED else 0)
    return float(np.median(others)) if len(others) else math.nan


def _around(values: np.ndarray, place: int, before: int, after: int) -> np.ndarray:
    """The finite ones of the values around a place, without its own."""
    others = np.concatenate([values[max(0, place - before) : place], values[place + 1 : place + 1 + after]])
    return others[np.isfinite(others)]


def _deviation(value: float, others: np.ndarray, least: float) -> float:
    """How far a value lies above the median of others, in standard deviations, of `least` at least."""
    if not math.isfinite(value):
        return math.inf
    if not len(others):
        return 0.0
    middle = float(np.median(others))
    spread = max(_MAD * float(np.median(np.abs(others - middle))), least, 1e-12)
    return (value - middle) / spread


def _rows(visits: Visits, step: int, threshold: float) -> tuple[bool, tuple[SpikeRow, ...]]:
    """Whether the step's median row stands out, and its rows, that of the largest loss first."""
    own = np.flatnonzero((visits.steps == step) & ~np.isnan(visits.loss))
    near = (np.abs(visits.steps - step) <= AROUND) & (visits.steps != step) & np.isfinite(visits.loss)
    around, least = visits.loss[near].astype(np.float64), 0.0
    if len(around):
        least = _LEAST * abs(float(np.median(around)))
    rows = [
        SpikeRow(
            int(visits.ids[place]),
            float(visits.loss[place]),
            _deviation(float(visits.loss[place]), around, least),
            None if math.isnan(visits.error_norm[place]) else float(visits.error_norm[place]),
        )
        for place in own
    ]
    # The median of a step's rows varies less than a row does: it is compared with those of the steps around.
    medians = np.array([np.median(visits.loss[near & (visits.steps == t)]) for t in np.unique(visits.steps[near])])
    whole = len(own) > 0 and _deviation(float(np.median(visits.loss[own])), medians, least) > threshold
    return whole, tuple(sorted(rows, key=lambda row: -row.loss)[:MOST])


def _batch(micro: MicroBatch) -> SpikeBatch:
    return SpikeBatch(micro.rank, micro.loss, micro.ids)


def _largest_first(batch: SpikeBatch) -> float:
    return 0.0 if batch.loss is None else -batch.loss if math.isfinite(batch.loss) else -math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
