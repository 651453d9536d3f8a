"""Sketch the window once, then answer any queries about any rows from the sketches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
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
from hf_prune.influence.sketch.store import StepSketch, Store
from hf_prune.influence.sketch.sweep import SketchedSegment, SketchSweep
from hf_prune.influence.sketch.window_pass import WindowPass, narrow
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
        curvature: str,
        gn_scale: float,
        batch_size: int,
        width: int = WIDTH,
    ):
        self.replay, self.batch_size = replay, batch_size
        objective, trajectory = replay.objective, replay.trajectory
        self.device = objective.device
        # Measured once, for every sketch must be folded alike.
        count = len(objective.shapes)
        kind = Annotated[list[Annotated[float, Meta(ge=0, le=2)]], Meta(min_length=count, max_length=count)]
        shares = cache.value("layout.json", lambda: _shares(replay), kind)
        self.sketch = CountSketch(objective.shapes, width, seed=1, device=self.device, shares=shares)
        bf16 = self.sketch.folds and fast_bfloat16(self.device)
        self.window = WindowPass(replay, self.sketch, bf16=bf16)
        curved = curvature == "gauss-newton"
        self.store = Store(cache, *trajectory.window, self.sketch, self._rows_of, curved=curved)
        self.sweep = SketchSweep(trajectory, self.store, self.sketch, curvature=curvature, gn_scale=gn_scale)

    def _rows_of(self, t: int) -> np.ndarray:
        step = self.replay.trajectory.step(t)
        return self.replay.row_of(() if step.skipped else step.ids)

    def prepare(self) -> None:
        """Sketches the window, in the one pass that needs the model; processes share it."""
        self.window.run(self.store)

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
        total = np.zeros((len(self.replay.rows), len(queries.values)))
        for swept in self.sweep.steps(queries):
            np.add.at(total, swept.sketch.ids.cpu().numpy(), swept.effects.T.cpu().double().numpy())
        return total

    def expected(self, queries: ScaledSketches, rows: Rows) -> np.ndarray:
        """
        The influence `(m, k)` of each of `rows` in expectation over the order of batches.

        A training row's gradient in a segment is that of its visits there, or in the nearest segment that has any; of
        other rows it is computed in the middle of each segment.
        """
        return self.candidates(queries)(rows)

    def candidates(self, queries: ScaledSketches) -> ExpectedRemoval:
        """The same of any rows, part by part."""
        return ExpectedRemoval(self.replay, partial(self._dots_of, self.segments(queries)), self.batch_size)

    def _dots_of(self, segments: list[SketchedSegment], rows: Rows) -> np.ndarray:
        """`sum_j <C_j, grad l_i>`, `(m, k)`."""
        dots, visited = np.zeros((len(rows), len(segments[0].cotangents))), np.zeros(len(rows), dtype=bool)
        if rows is self.replay.rows:
            dots, visited = self._of_visits(segments)
        others = np.flatnonzero(~visited)
        if len(others):
            dots[others] = with_retreat(self._of_rows, self.batch_size, segments, rows, others)
        return dots

    def slopes(self, queries: ScaledSketches, mode: str, rows: Rows, wanted: np.ndarray) -> Iterator[RowSlopes]:
        """The parts that the effects of the `wanted` ones of `rows` are sums of."""
        slopes = SketchedSlopes(self.replay, self.window, self.store)
        if mode == "visits":
            return slopes.of_visits(self.sweep.steps(queries), wanted)
        nearest, counts = self._served()
        if rows is not self.replay.rows:
            nearest, counts = (np.zeros((len(rows), len(self.replay.middles)), dtype=np.int64) for _ in range(2))
        shares = self.replay.item_shares(rows, self.batch_size)
        return slopes.of_segments(self.segments(queries), wanted, shares, nearest, counts)

    def segments(self, queries: ScaledSketches) -> list[SketchedSegment]:
        """The summed cotangents of each segment, from the first to the last."""
        found: dict[int, SketchedSegment] = {}
        for swept in self.sweep.steps(queries):
            sketch, total = swept.sketch, float(swept.sketch.weights.sum())
            own = found.setdefault(
                self.replay.segment_of(swept.t),
                SketchedSegment(
                    torch.zeros_like(swept.cotangents), torch.zeros_like(swept.clip_term), sketch.log_scales
                ),
            )
            change = self.sketch.spread((sketch.log_scales - own.log_scales).cpu().exp())
            own.cotangents.add_(swept.cotangents * change, alpha=total * swept.clip_factor)
            own.clip_term.add_(swept.clip_term, alpha=total)
        some = next(iter(found.values()))  # where all steps of a segment were skipped there is nothing to sum
        nothing = SketchedSegment(torch.zeros_like(some.cotangents), torch.zeros_like(some.clip_term), some.log_scales)
        return [found.get(place, nothing) for place in range(len(self.replay.middles))]

    def _of_visits(self, segments: list[SketchedSegment]) -> tuple[np.ndarray, np.ndarray]:
        """`sum_j <C_j, grad l_i>` `(n, k)` from the gradients of the rows' visits, and which rows `(n,)` had any."""
        nearest, counts = self._served()
        total = np.zeros((len(self.replay.rows), len(segments[0].cotangents)))
        for t, sketch in self.store.backwards(self.device):
            ids, own = sketch.ids.cpu().numpy(), self.replay.segment_of(t)
            for place, segment in enumerate(segments):
                serves = nearest[ids, place] == own
                if serves.any():
                    dots = self._dots(segment, sketch) / counts[ids, own]
                    np.add.at(total, ids[serves], dots.T[serves])
        return total, counts.sum(1) > 0

    def _served(self) -> tuple[np.ndarray, np.ndarray]:
        """The segment whose visits serve each segment, and the visits of each training row in each, `(n, J)`."""
        n = len(self.replay.rows)
        counts = np.zeros((n, len(self.replay.middles)), dtype=np.int64)
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
        batches = -(-len(chosen) // size)
        one_of_many = rows is not self.replay.rows  # parts of a pool, which has a bar of its own
        with tqdm(
            total=batches * len(segments), desc="Scoring unvisited rows", unit="batch", disable=one_of_many
        ) as bar:
            # Segments outside: reading snapshots takes longer than a batch.
            for middle, segment in zip(self.replay.middles, segments, strict=True):
                theta, scales = self.replay.theta(middle), self.window.scales.at(middle)
                C = segment.cotangents * self.sketch.spread((segment.log_scales.cpu() - scales.log_means).exp())
                for part, batch in chosen.batches(size):
                    with self.window.per_example.forward(theta, batch.inputs) as forward:
                        loss = self.replay.objective.loss(batch)
                        scaled, unscaled = forward.loss_sketches(loss, batch, scales.factors)
                    total[part.start : part.stop] += scaled @ C.T - narrow(unscaled) @ segment.clip_term.T
                    bar.update()
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
