"""Influence by vectors of the parameters' length: exact, for models whose k vectors fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from hf_prune.influence.cache import SharedCache
from hf_prune.influence.cost import direction_bytes
from hf_prune.influence.dense.sweep import DenseSweep, Segment
from hf_prune.influence.loss_queries import LossQueries, loss_queries
from hf_prune.influence.memory import free_memory
from hf_prune.influence.queries import Queries, loss_query, output_queries, parameter_queries
from hf_prune.influence.removal import ExpectedRemoval
from hf_prune.influence.row_slopes import RowSlopes
from hf_prune.model.per_example import example_gradients
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows

# Parameters, rows, factors and cotangents of [`RowSlopes`].
_Slopes = tuple[torch.Tensor, np.ndarray, torch.Tensor, torch.Tensor]


class DenseEngine:
    """
    Sweeps as many queries at once as fit into memory; each chunk's result is a file, which processes share.

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        cache (`SharedCache`): where finished chunks of queries are kept until all are.
        key (`str`): what the chunks' files are named after: a digest of all that they depend on.
        curvature (`str`): `"none"`, `"fisher"`, `"gauss-newton"` or `"exact"`.
        gn_scale (`float`): what the Gauss-Newton matrix is multiplied by.
        batch_size (`int`): rows in one pass over rows.
        max_memory (`int`, *optional*): bytes that a sweep may take; by default what is free.
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
        max_memory: int | None = None,
    ):
        self.replay, self.cache, self.key = replay, cache, key
        self.batch_size, self.max_memory = batch_size, max_memory
        self.sweep = DenseSweep(replay, curvature=curvature, gn_scale=gn_scale)

    def prepare(self) -> None:
        """There is nothing to do once for all queries: each sweep goes through the model."""

    def encode(self, queries: Queries | LossQueries) -> torch.Tensor:
        """The gradients `(k, p)` of the queries at the last parameters, that of the held-out loss last."""
        objective, theta = self.replay.objective, self.replay.theta(self.replay.last)
        if isinstance(queries, LossQueries):
            return loss_queries(objective, theta, queries, batch_size=self.batch_size)
        if queries.space == "parameters":
            found = parameter_queries(theta, queries.k, seed=queries.seed)
        else:
            found = output_queries(
                objective, theta, queries.rows, queries.k, batch_size=self.batch_size, seed=queries.seed
            )
        if queries.held_out is None:
            return found
        return torch.cat([found, loss_query(objective, theta, queries.held_out, batch_size=self.batch_size)])

    def visits(self, queries: torch.Tensor) -> np.ndarray:
        """The influence `(n, k)` of each row through its own recorded visits."""
        return self._in_chunks(queries, 0, self.sweep.visits)

    def expected(self, queries: torch.Tensor, rows: Rows) -> np.ndarray:
        """The influence `(m, k)` of each of `rows` in expectation over the order of batches."""
        work = partial(self._expected, rows=rows)
        return self._in_chunks(queries, len(self.replay.middles), work)

    def _expected(self, queries: torch.Tensor, rows: Rows) -> np.ndarray:
        return self._of_any(queries, "Scoring rows")(rows)

    def candidates(self, queries: torch.Tensor) -> ExpectedRemoval:
        """The same of any rows, part by part, with all queries at once."""
        k, segments = len(queries), len(self.replay.middles)
        room = free_memory(self.replay.objective.device) if self.max_memory is None else self.max_memory
        if queries_at_once(queries.shape[1], k, room, segments) < k:
            raise ValueError(
                f"The dense engine has no room for {k} directions over a stream at once; use engine='projected', or "
                "fewer directions."
            )
        return self._of_any(queries, None)

    def _of_any(self, queries: torch.Tensor, bar: str | None) -> ExpectedRemoval:
        dots = partial(self._dots, self.sweep.segments(queries), bar=bar)
        return ExpectedRemoval(self.replay, dots, self.batch_size)

    def _dots(self, segments: list[Segment], rows: Rows, bar: str | None) -> np.ndarray:
        """`sum_j <C_j, grad l_i(theta_j)>`, `(m, k)`."""
        total = np.zeros((len(rows), len(segments[0].cotangents)))
        for numbers, batch in rows.batches(self.batch_size, bar):
            turns = rows.turns(len(segments), numbers, batch)
            for segment, drawn in zip(segments, turns, strict=True):
                dots = example_gradients(self.replay.objective, segment.theta, drawn) @ segment.cotangents.T
                total[numbers.start : numbers.stop] += dots.cpu().double().numpy()
        return total

    def slopes(self, queries: torch.Tensor, mode: str, rows: Rows, wanted: np.ndarray) -> Iterator[RowSlopes]:
        """The parts that the effects of the `wanted` ones of `rows` are sums of."""
        segments = len(self.replay.middles) if mode == "expected" else 0
        for part in _slices(len(queries), self._at_once(queries, segments)):
            asked = range(part.start, part.stop)
            if mode == "visits":
                found = self._of_visits(queries[part], wanted)
            else:
                found = self._of_segments(queries[part], rows, wanted)
            for theta, chosen, factors, cotangents in found:
                yield RowSlopes(theta, chosen, factors, asked, partial(_row, cotangents, part.start))

    def _of_visits(self, queries: torch.Tensor, wanted: np.ndarray) -> Iterator[_Slopes]:
        for swept in self.sweep.steps(queries, effects=False):
            chosen = np.isin(swept.visits.rows, wanted)
            if chosen.any():
                factors = -swept.visits.weights[torch.from_numpy(chosen)]
                yield self.replay.theta(swept.step.index), swept.visits.rows[chosen], factors, swept.cotangents

    def _of_segments(self, queries: torch.Tensor, rows: Rows, wanted: np.ndarray) -> Iterator[_Slopes]:
        factors = -torch.from_numpy(self.replay.item_shares(rows, self.batch_size)[wanted]).to(queries)
        for segment in self.sweep.segments(queries):
            yield segment.theta, wanted, factors, segment.cotangents

    def _in_chunks(
        self, queries: torch.Tensor, segments: int, work: Callable[[torch.Tensor], np.ndarray]
    ) -> np.ndarray:
        """`work(queries) -> (n, k)`, chunk by chunk of the queries."""
        k, processes = len(queries), self.cache.processes
        at_once = self._at_once(queries, segments)
        chunks = {
            f"effects-{self.key}-{part.start:05d}-{part.stop:05d}.safetensors": part
            for part in _slices(k, min(at_once, -(-k // processes.world)))
        }
        for name in self.cache.own_share(chunks):
            self.cache.write(name, {"effects": torch.from_numpy(work(queries[chunks[name]]))})
        processes.barrier()
        return np.concatenate([self.cache.read(name)["effects"].numpy() for name in chunks], axis=1)

    def _at_once(self, queries: torch.Tensor, segments: int) -> int:
        """How many queries a sweep can carry, alike in all processes."""
        room = free_memory(self.replay.objective.device) if self.max_memory is None else self.max_memory
        return int(self.cache.processes.broadcast(queries_at_once(queries.shape[1], len(queries), room, segments)))


def queries_at_once(size: int, k: int, room: int, segments: int = 0) -> int:
    """
    How many of `k` queries over `size` parameters the sweep can carry at once in `room` bytes.

    Raises:
        `ValueError`: when there is no room for one.
    """
    gradients, one = k * size * 4, direction_bytes(size, segments)
    at_once = (room - gradients) // one
    if at_once < 1:
        raise ValueError(
            f"Scoring {k} directions of {size:,} parameters by the dense engine takes at least "
            f"{(gradients + one) / 1e9:.1f} GB of memory and there are {room / 1e9:.1f} GB; use "
            "engine='projected' with curvature='gauss-newton', fewer directions, or record fewer parameters."
        )
    return int(min(at_once, k))


def _row(values: torch.Tensor, first: int, number: int) -> torch.Tensor:
    return values[number - first]


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
