"""What `Dataset.map` calls to write the influence columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.config import ScoringConfig
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.predictor import Predictor, finite
from hf_prune.influence.queries import Queries, probe
from hf_prune.model.losses import FACTORED_LOGITS
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows


class Scorer:
    """
    Scores all rows at once, and hands them out batch by batch. Columns that come from the cache need neither.

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        targets (`Rows`): the rows to score.
        held_out (`Rows`, *optional*): the held-out rows.
        config (`ScoringConfig`): how to score, with engine and curvature chosen.
        batch_size (`int`): rows in one forward pass over rows.
        max_memory (`int`, *optional*): bytes that a dense sweep may take.
        in_parts (`bool`, *optional*, defaults to `False`): rows were not trained on, and are scored when asked for.
    """

    def __init__(
        self,
        replay: Replay,
        targets: Rows,
        held_out: Rows | None,
        config: ScoringConfig,
        *,
        batch_size: int,
        max_memory: int | None = None,
        in_parts: bool = False,
    ):
        self.replay, self.targets, self.held_out, self.config = replay, targets, held_out, config
        self.batch_size, self.max_memory = batch_size, max_memory
        self.in_parts = in_parts
        self.shifts: np.ndarray | None = None
        self.predictors: list[Callable[[Rows], np.ndarray]] = []

    def prepare(self, caches: Sequence[SharedCache], key: str) -> None:
        """
        Scores the rows; what is worth keeping goes to the caches, where a killed run finds it again.

        Args:
            caches (`Sequence[SharedCache]`): one for each draw of random rows; the scores are means over them.
            key (`str`): a digest of all that the scores depend on.
        """
        config = self.config
        rows = self.held_out if self.held_out is not None else probe(self.replay.rows, config.seed)
        queries = Queries(config.directions, config.space, config.seed, rows, self.held_out)
        predictor = Predictor(
            self.replay, self.targets, caches, config, batch_size=self.batch_size, max_memory=self.max_memory
        )
        predictor.check()
        if self.in_parts:
            self.predictors = [engine.candidates(engine.encode(queries)) for engine in predictor.engines(key)]
        else:
            self.shifts = predictor.shifts(queries, key)

    def shifts_of(self, rows: Rows) -> np.ndarray:
        """The predicted shifts `(m, k)` of rows that were not trained on, that of the held-out loss last."""
        shifts = np.zeros(())
        for draw, predictor in enumerate(self.predictors):
            if self.targets.chance.number is not None:
                self.targets.chance.number = draw
            shifts = shifts + predictor(rows) / len(self.predictors)
        return finite(shifts)

    def __call__(self, columns: dict[str, list[Any]], indices: list[int]) -> dict[str, np.ndarray]:
        assert self.shifts is not None, "prepare() comes first"
        return self.columns(self.shifts[indices])

    def columns(self, shifts: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of rows with these shifts `(m, k)`."""
        names, k = InfluenceColumns(self.config.column), self.config.directions
        with np.errstate(over="ignore"):  # what is too large for single precision is refused
            vectors = np.ascontiguousarray(shifts[:, :k], dtype=np.float32)
            result = {names.vector: vectors, names.norm: finite(np.linalg.norm(vectors, axis=1))}
        if self.held_out is not None:
            result[names.eval_loss] = shifts[:, k]
        return result


def logit_curvature(replay: Replay, held_out: Rows | None, batch_size: int) -> float | None:
    """
    The mean curvature of the held-out loss in a row's logits, `mean of trace(d^2 l / d z^2) / C`, at the run's end.

    `None` without held-out rows, or where a row has many logits or none.
    """
    objective = replay.objective
    if held_out is None or objective.width(held_out.batch([0])) > FACTORED_LOGITS:
        return None
    if objective.loss(held_out.batch([0])).is_output:
        return None
    theta, total = replay.theta(replay.last), 0.0
    for _, batch in held_out.batches(batch_size, "Reading held-out rows"):
        with torch.no_grad():
            logits = objective.logits(theta, batch.inputs)
        hessians = objective.loss(batch).logit_hessians(logits, batch)
        total += float(hessians.diagonal(0, 1, 2).mean(1).sum())
    return total / len(held_out)
