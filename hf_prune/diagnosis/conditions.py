"""Other conditions of the same training: another batch order, and half the batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from hf_prune.diagnosis.rerun import ReplayedUpdate
from hf_prune.model.replay import Replay
from hf_prune.trajectory.trajectory import Step


def reordered(replay: Replay, steps: list[Step], seed: int) -> list[Step]:
    """
    The same visits in other batches: shuffled within each epoch, so that it stays one visit of a row an epoch.

    The number of items of a step, where the model divides by it, is that of its new rows.
    """
    rng = np.random.default_rng([seed, 1])
    epochs = np.array([math.ceil(round(step.epoch, 6)) - 1 for step in steps])
    ids: list[np.ndarray] = [np.empty(0, np.int64)] * len(steps)
    for epoch in np.unique(epochs):
        members = np.flatnonzero(epochs == epoch)
        mixed = rng.permutation(np.concatenate([steps[m].ids for m in members]))
        ends = np.cumsum([len(steps[m].ids) for m in members])
        for member, part in zip(members, np.split(mixed, ends[:-1]), strict=True):
            ids[member] = part
    return [_with_ids(replay, step, new) for step, new in zip(steps, ids, strict=True)]


def _with_ids(replay: Replay, step: Step, ids: np.ndarray) -> Step:
    change = 1.0
    if any(micro.num_items is not None for micro in step.micro_batches):
        change = _items(replay, ids) / _items(replay, step.ids)
    parts = np.split(ids, np.cumsum([len(micro.ids) for micro in step.micro_batches])[:-1])
    micro_batches = tuple(
        replace(
            micro,
            ids=tuple(int(i) for i in part),
            num_items=None if micro.num_items is None else micro.num_items * change,
        )
        for micro, part in zip(step.micro_batches, parts, strict=True)
    )
    return replace(step, micro_batches=micro_batches)


def _items(replay: Replay, ids: np.ndarray) -> float:
    batch = replay.rows.batch(replay.row_of(ids).tolist())
    return float(replay.objective.items(batch).sum())


def halved(updates: Iterable[ReplayedUpdate]) -> Iterator[ReplayedUpdate]:
    """
    Each update as two, of half its rows each: weights are those of a mean over these, and learning rates are shared
    out, so that at a small rate the two move the parameters as far as the one did.
    """
    for update in updates:
        whole = sum(float(part.weights.sum()) for part in update.parts)
        for half in (0, 1):
            # Odd rows go to either half in turn.
            cuts = [(len(part.rows) + place % 2) // 2 for place, part in enumerate(update.parts)]
            chosen = [slice(None, cut) if half == 0 else slice(cut, None) for cut in cuts]
            weight = sum(float(part.weights[own].sum()) for part, own in zip(update.parts, chosen, strict=True))
            if weight <= 0:
                continue
            parts = tuple(
                part.part(own, whole / weight)
                for part, own in zip(update.parts, chosen, strict=True)
                if len(part.rows[own])
            )
            yield ReplayedUpdate(update.step, parts, tuple(rate * weight / whole for rate in update.learning_rates))
