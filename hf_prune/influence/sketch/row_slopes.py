"""The slopes of rows along sketched cotangents, which are taken back to the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from hf_prune.influence.row_slopes import RowSlopes
from hf_prune.influence.sketch.scales import Scales
from hf_prune.influence.sketch.store import Store
from hf_prune.influence.sketch.sweep import SketchedSegment, SketchedStep
from hf_prune.influence.sketch.window_pass import WindowPass, widen
from hf_prune.model.replay import Replay


class SketchedSlopes:
    """
    Tells the parts that rows' effects are sums of, for an engine that sketches.

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        window (`WindowPass`): what sketched it.
        store (`Store`): the sketched window.
    """

    def __init__(self, replay: Replay, window: WindowPass, store: Store):
        self.replay, self.window, self.store, self.sketch = replay, window, store, window.sketch
        self._scales: tuple[range, Scales] | None = None

    def of_visits(self, swept: Iterable[SketchedStep], wanted: np.ndarray) -> Iterator[RowSlopes]:
        """Those of the recorded visits of the `wanted` rows."""
        for step in swept:
            ids = step.sketch.ids.cpu().numpy()
            chosen = np.isin(ids, wanted)
            if not chosen.any():
                continue
            scales = self._scales_of(step.t)
            cotangents, clip = step.cotangents * step.clip_factor, step.clip_term
            yield RowSlopes(
                theta=self.replay.theta(step.t),
                rows=ids[chosen],
                factors=-step.sketch.weights[torch.from_numpy(chosen)],
                queries=range(len(cotangents)),
                cotangent=partial(self._cotangent, cotangents, clip, scales),
            )

    def of_segments(
        self,
        segments: Sequence[SketchedSegment],
        wanted: np.ndarray,
        shares: np.ndarray,
        nearest: np.ndarray,
        counts: np.ndarray,
    ) -> Iterator[RowSlopes]:
        """
        Those of the `wanted` rows in expectation, by the gradients that the engine takes for them.

        Args:
            shares (`np.ndarray`, `(m,)`): the weight of each row's loss in the mean loss of the visits.
            nearest, counts (`np.ndarray`, `(m, J)`): the segment whose visits serve each segment, and the number of
                visits in each; 0 visits for rows whose gradients are taken in the middle of the segments.
        """
        for step in reversed(self.replay.steps()):
            t, ids, own = step.index, self.replay.row_of(step.ids), self.replay.segment_of(step.index)
            visited = np.isin(ids, wanted)
            for place, segment in enumerate(segments):
                chosen = ids[visited & (nearest[ids, place] == own)] if visited.any() else ids[:0]
                if len(chosen):
                    weights = shares[chosen] / counts[chosen, own]
                    yield self._in_expectation(segment, t, self._scales_of(t), chosen, weights)
        others = wanted[counts[wanted].sum(1) == 0]
        if len(others):
            for middle, segment in zip(self.replay.middles, segments, strict=True):
                scales = self.window.scales.at(middle)
                yield self._in_expectation(segment, middle, scales, others, shares[others])

    def _in_expectation(
        self, segment: SketchedSegment, t: int, scales: Scales, rows: np.ndarray, weights: np.ndarray
    ) -> RowSlopes:
        change = self.sketch.spread((segment.log_scales.cpu() - scales.log_means).exp())
        return RowSlopes(
            theta=self.replay.theta(t),
            rows=rows,
            factors=-torch.from_numpy(weights).to(segment.cotangents),
            queries=range(len(segment.cotangents)),
            cotangent=partial(self._cotangent, segment.cotangents * change, segment.clip_term, scales),
        )

    def _cotangent(self, cotangents: torch.Tensor, clip: torch.Tensor, scales: Scales, query: int) -> torch.Tensor:
        """One query's cotangent `(p,)` of the gradient: that along the scaled sketch, less that along the other."""
        along = self.sketch.unsketch(cotangents[query], scales.factors)
        if not clip[query].any():
            return along
        return along - self.sketch.unsketch(widen(clip[query][None], self.sketch.width)[0], self.window.scales.none())

    def _scales_of(self, t: int) -> Scales:
        """The scales that the step was sketched with."""
        shard = next(shard for shard in self.store.shards if t in shard)
        if self._scales is None or self._scales[0] != shard:
            self._scales = shard, self.window.scales.at((shard.start + shard.stop) // 2)
        return self._scales[1]
