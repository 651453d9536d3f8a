"""Sketch the window once, then answer any queries about any rows from the sketches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated

import numpy as np
import torch
from datasets.utils import tqdm
from msgspec import Meta

from hf_prune.influence.cache import SharedCache
from hf_prune.influence.loss_queries import LossQueries
from hf_prune.influence.queries import Queries
from hf_prune.influence.removal import ExpectedRemoval
from hf_prune.influence.row_slopes import RowSlopes
from hf_prune.influence.sketch.count_sketch import CountSketch, fast_bfloat16
from hf_prune.influence.sketch.query_sketches import (
    loss_query_sketch,
    loss_query_sketches,
    output_query_sketches,
    parameter_query_sketches,
)
from hf_prune.influence.sketch.row_slopes import SketchedSlopes
from hf_prune.influence.sketch.scales import ScaledSketches
from hf_prune.influence.sketch.segments import SegmentedSweep, Swept
from hf_prune.influence.sketch.store import StepSketch, Store
from hf_prune.influence.sketch.sweep import SketchedSegment, SketchedStep, SketchSweep, SweepState
from hf_prune.influence.sketch.window_pass import WindowPass, narrow
from hf_prune.model.micro_batches import parts_of_rows
from hf_prune.model.replay import Replay
from hf_prune.model.retreat import with_retreat
from hf_prune.model.rows import Rows

# Dimensions of a sketch: inner products of gradients have a standard error of about one part in 250.
WIDTH = 1 << 16
# Those of the sketch that tells where the gradients' squared norms are.
COARSE = 1 << 14


class SketchEngine:
    """
    Influence by sketches.

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        cache (`SharedCache`): where the window's sketches are kept, for the processes that share the work.
        key (`str`): a digest of all that the scores depend on.
        curvature (`str`): `"none"`, `"fisher"` or `"gauss-newton"`.
        gn_scale (`float`): what the Gauss-Newton matrix is multiplied by.
        batch_size (`int`): rows in one pass over rows.
        width (`int`, *optional*, defaults to 65,536): about how many dimensions a sketch has.
    """

    def __init__(
        self,
        replay: Replay,
        cache: SharedCache,
        *,
        key: str,
        curvature: str,
        gn_scale: float,
        batch_size: int,
        width: int = WIDTH,
    ):
        self.replay, self.batch_size = replay, batch_size
        objective = replay.objective
        self.device = objective.device
        # Measured once, for every sketch must be folded alike.
        count = len(objective.shapes)
        kind = Annotated[list[Annotated[float, Meta(ge=0, le=2)]], Meta(min_length=count, max_length=count)]
        shares = cache.value("layout.json", lambda: _shares(replay), kind)
        self.sketch = CountSketch(objective.shapes, width, seed=1, device=self.device, shares=shares)
        bf16 = self.sketch.folds and fast_bfloat16(self.device)
        self.window = WindowPass(replay, self.sketch, bf16=bf16)
        self.sweep = SketchSweep(replay.trajectory, self.sketch, curvature=curvature, gn_scale=gn_scale)
        self.segmented = SegmentedSweep(replay, self.window, self.sweep, cache, key)

    def prepare(self) -> None:
        """Sketches the window, in the one pass that needs the model, unless the disk has room for a segment alone."""
        self.segmented.prepare()

    def encode(self, queries: Queries | LossQueries) -> ScaledSketches:
        """The queries' gradients at the last parameters, sketched, that of the held-out loss last."""
        return with_retreat(self._encode, self.batch_size, queries)

    def _encode(self, size: int, queries: Queries | LossQueries) -> ScaledSketches:
        theta, scales = self.replay.theta(self.replay.last), self.window.scales.at(self.replay.last)
        if isinstance(queries, LossQueries):
            values = loss_query_sketches(self.window, theta, scales, queries, batch_size=size)
            return ScaledSketches(values, scales.log_means)
        k, seed = queries.k, queries.seed
        if queries.space == "parameters":
            found = [parameter_query_sketches(self.window, theta, scales, k, seed=seed)]
            if queries.held_out is not None:
                found.append(loss_query_sketch(self.window, theta, scales, queries.held_out, batch_size=size))
        else:
            # The held-out rows, where there are any, are those whose outputs are asked about.
            whole = output_query_sketches(self.window, theta, scales, queries.rows, k, batch_size=size, seed=seed)
            found = [whole if queries.held_out is not None else whole[:k]]
        return ScaledSketches(torch.cat(found), scales.log_means)

    def visits(self, queries: ScaledSketches) -> np.ndarray:
        """The influence `(n, k)` of each row through its own recorded visits."""
        with self.segmented.alone():
            swept = self.segmented.begin(queries, "visits")
            for _, _, steps in self.segmented.over(swept):
                for step in steps:
                    np.add.at(swept.total, step.sketch.ids.cpu().numpy(), step.effects.T.cpu().double().numpy())
            return self.segmented.end(swept, "visits").total

    def expected(self, queries: ScaledSketches, rows: Rows) -> np.ndarray:
        """
        The influence `(m, k)` of each of `rows` in expectation over the order of batches.

        A training row's gradient in a segment is that of its visits there, or in the nearest segment that has any; of
        other rows it is computed in the middle of each segment.
        """
        return self._removal(queries, shared=True)(rows)

    def candidates(self, queries: ScaledSketches) -> ExpectedRemoval:
        """The same of any rows, part by part, which each process does for itself."""
        return self._removal(queries, shared=False)

    def _removal(self, queries: ScaledSketches, *, shared: bool) -> ExpectedRemoval:
        dots = partial(self._dots_of, self._swept(queries), shared=shared)
        return ExpectedRemoval(self.replay, dots, self.batch_size)

    def _dots_of(self, swept: Swept, rows: Rows, *, shared: bool) -> np.ndarray:
        """`sum_j <C_j, grad l_i>`, `(m, k)`."""
        dots, visited = np.zeros((len(rows), swept.total.shape[1])), np.zeros(len(rows), dtype=bool)
        if rows is self.replay.rows:
            dots, visited = self._of_visits(swept, shared=shared).copy(), self._served[1].sum(1) > 0
        others = np.flatnonzero(~visited)
        if len(others):
            own = others[self.segmented.own(len(others))] if shared else others
            found = np.zeros_like(dots)
            if len(own):
                found[own] = with_retreat(self._of_rows, self.batch_size, swept.segments, rows, own)
            dots += self.segmented.summed("unvisited", found) if shared else found
        return dots

    def slopes(self, queries: ScaledSketches, mode: str, rows: Rows, wanted: np.ndarray) -> Iterator[RowSlopes]:
        """The parts that the effects of the `wanted` ones of `rows` are sums of."""
        slopes = SketchedSlopes(self.replay, self.window, self.segmented.store)
        if mode == "visits":
            return slopes.of_visits(self._steps(queries), wanted)
        nearest, counts = self._served
        if rows is not self.replay.rows:
            nearest, counts = (np.zeros((len(rows), len(self.replay.middles)), dtype=np.int64) for _ in range(2))
        shares = self.replay.item_shares(rows, self.batch_size)
        return slopes.of_segments(self._swept(queries).segments, wanted, shares, nearest, counts)

    def _steps(self, queries: ScaledSketches) -> Iterator[SketchedStep]:
        with self.segmented.alone():
            for _, _, steps in self.segmented.over(self.segmented.begin(queries, "")):
                yield from steps

    def _swept(self, queries: ScaledSketches) -> Swept:
        """The summed cotangents of each segment, from the first to the last, and what was answered with them."""
        with self.segmented.alone():
            swept = self.segmented.begin(queries, "expected")
            for part, places, steps in self.segmented.over(swept):
                swept.segments.insert(0, self._summed(swept.state, steps))
                self._answer(swept, part, places)
            return self.segmented.end(swept, "expected")

    def _summed(self, state: SweepState, steps: Iterator[SketchedStep]) -> SketchedSegment:
        """The summed cotangents of the steps of a segment; nothing where all were skipped."""
        own = SketchedSegment(torch.zeros_like(state.A), torch.zeros_like(narrow(state.A)), state.log_scales)
        for number, step in enumerate(steps):
            sketch, total = step.sketch, float(step.sketch.weights.sum())
            if not number:
                own = replace(own, log_scales=sketch.log_scales)
            change = self.sketch.spread((sketch.log_scales - own.log_scales).cpu().exp())
            own.cotangents.add_(step.cotangents * change, alpha=total * step.clip_factor)
            own.clip_term.add_(step.clip_term, alpha=total)
        return own

    def _of_visits(self, swept: Swept, *, shared: bool) -> np.ndarray:
        """`sum_j <C_j, grad l_i>` `(n, k)` from the gradients of the rows' visits."""
        late = swept.late
        with self.segmented.alone():
            for part, places in self.segmented.late(swept, self._late_rows, shared=shared):
                self._answer(swept, part, places)
        if late and shared and self.segmented.keeps:
            swept.total = self.segmented.summed("visits", swept.total)
        return swept.total

    def _answer(self, swept: Swept, part: Store, places: range) -> None:
        """Adds what the visits of a segment say of the segments in these places that they serve."""
        nearest, counts = self._served
        for t, sketch in part.backwards(self.device) if places else ():
            ids, own = sketch.ids.cpu().numpy(), self.replay.segment_of(t)
            for place in places:
                serves = nearest[ids, place] == own
                if serves.any():
                    dots = self._dots(swept.segments[place - self.segmented.count], sketch) / counts[ids, own]
                    np.add.at(swept.total, ids[serves], dots.T[serves])

    def _late_rows(self, t: int) -> np.ndarray:
        """The rows of a step whose visits serve an earlier segment."""
        step, own = self.replay.trajectory.step(t), self.replay.segment_of(t)
        rows = self.replay.row_of(() if step.skipped or not own else step.ids)
        return rows[self._served[0][rows, own - 1] == own]

    @cached_property
    def _served(self) -> tuple[np.ndarray, np.ndarray]:
        """The segment whose visits serve each segment, and the visits of each training row in each, `(n, J)`."""
        n = len(self.replay.rows)
        counts = np.zeros((n, len(self.replay.middles)), dtype=np.int32)
        for step in self.replay.steps():
            counts[:, self.replay.segment_of(step.index)] += np.bincount(self.replay.row_of(step.ids), minlength=n)
        return nearest_segment(counts > 0), counts

    def _dots(self, segment: SketchedSegment, sketch: StepSketch) -> np.ndarray:
        """`<C, grad l_i>` `(k, B)` of a step's visits."""
        C = segment.cotangents * self.sketch.spread((segment.log_scales - sketch.log_scales).cpu().exp())
        dots = C @ sketch.sketches.T - segment.clip_term @ sketch.unscaled.T
        return (dots @ sketch.loss_map()).cpu().double().numpy()

    def _of_rows(self, size: int, segments: list[SketchedSegment], rows: Rows, numbers: np.ndarray) -> np.ndarray:
        """`sum_j <C_j, grad l_i(theta_j)>` `(B, k)` for the rows with these `numbers (B,)`, visited or not."""
        chosen = rows.select(numbers.tolist())
        total = torch.zeros(len(numbers), len(segments[0].cotangents), device=self.device)
        one_of_many = rows is not self.replay.rows  # parts of a pool, which has a bar of its own
        work = len(chosen) * len(segments)
        with tqdm(total=work, desc="Scoring unvisited rows", unit="row", disable=one_of_many) as bar:
            # Segments outside: reading snapshots takes longer than a batch.
            for middle, segment in zip(self.replay.middles, segments, strict=True):
                theta, scales = self.replay.theta(middle), self.window.scales.at(middle)
                C = segment.cotangents * self.sketch.spread((segment.log_scales.cpu() - scales.log_means).exp())
                for own, part in parts_of_rows(self.replay.objective, chosen, size):
                    with self.window.per_example.forward(theta, part.inputs) as forward:
                        loss = self.replay.objective.loss(part)
                        scaled, unscaled = forward.loss_sketches(loss, part, scales.factors)
                    total[own] += scaled @ C.T - narrow(unscaled) @ segment.clip_term.T
                    bar.update(len(part))
        return total.cpu().double().numpy()


def _shares(replay: Replay) -> list[float]:
    """What each parameter gets of the sketch."""
    coarse = CountSketch(replay.objective.shapes, COARSE, seed=0, device=replay.objective.device)
    return WindowPass(replay, coarse, bf16=False).shares()


def nearest_segment(has: np.ndarray) -> np.ndarray:
    """For each row and segment the nearest segment in which `has (n, J)` holds, the earlier of two."""
    J = has.shape[1]
    places = np.arange(J, dtype=np.int32)
    before = np.maximum.accumulate(np.where(has, places, -J), axis=1)
    after = np.minimum.accumulate(np.where(has, places, 3 * J)[:, ::-1], axis=1)[:, ::-1]
    return np.where(places - before <= after - places, before, after)
