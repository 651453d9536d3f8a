"""What removing rows does to queries, as a mean over draws of rows that are random."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets.fingerprint import Hasher

from hf_prune._core.config import AttributionConfig, ScoringConfig
from hf_prune._core.processes import Processes
from hf_prune.errors import UnsupportedError
from hf_prune.influence.cache import FORMAT, SharedCache
from hf_prune.influence.cache_eviction import PREFIX
from hf_prune.influence.checks import check_objective, warn_of_few_steps
from hf_prune.influence.engine import Engine, make_engine
from hf_prune.influence.loss_queries import LossQueries
from hf_prune.influence.queries import Queries
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from hf_prune.trajectory.trajectory import Trajectory


class Predictor:
    """
    Asks an engine of the recorded run.

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        targets (`Rows`): the rows to score.
        works (`Sequence[SharedCache]`):
            where intermediate results are kept, which a killed run finds again: one for each draw of random rows.
        config (`ScoringConfig` or `AttributionConfig`): how to score, with engine and curvature chosen.
        batch_size (`int`): rows in one forward pass over rows.
        max_memory (`int`, *optional*): bytes that a dense sweep may take.
    """

    def __init__(
        self,
        replay: Replay,
        targets: Rows,
        works: Sequence[SharedCache],
        config: ScoringConfig | AttributionConfig,
        *,
        batch_size: int,
        max_memory: int | None = None,
    ):
        self.replay, self.targets, self.works, self.config = replay, targets, works, config
        self.batch_size, self.max_memory = batch_size, max_memory

    def check(self) -> None:
        """Compares what the run was trained on with what is scored, and warns where scores will be less faithful."""
        check_objective(self.replay)
        warn_of_few_steps(self.replay, self.config.engine)

    def shifts(self, queries: Queries | LossQueries, key: str) -> np.ndarray:
        """
        The predicted shifts `(n, k)` of the queries, that of the mean held-out loss last.

        Args:
            key (`str`): a digest of all that they depend on.
        """
        total = np.zeros(())
        for engine in self.engines(key):
            encoded = engine.encode(queries)
            visits = self.config.mode == "visits"
            found = engine.visits(encoded) if visits else engine.expected(encoded, self.targets)
            total = total + found / len(self.works)
        return finite(total)

    def engines(self, key: str) -> Iterator[Engine]:
        """An engine for each draw, ready to be asked."""
        for draw, work in enumerate(self.works):
            if self.targets.chance.number is not None:
                self.targets.chance.number = draw
            with work.in_use():
                engine = make_engine(
                    self.config.engine,
                    self.replay,
                    work,
                    key=key,
                    curvature=self.config.curvature,
                    batch_size=self.batch_size,
                    max_memory=self.max_memory,
                )
                engine.prepare()
                yield engine


def finite(shifts: np.ndarray) -> np.ndarray:
    """
    The shifts, which must be numbers.

    Raises:
        `UnsupportedError`: where they are not.
    """
    if not np.isfinite(shifts).all():
        raise UnsupportedError(
            "The sweep ran into NaN or infinity: the adjoint of this run is not stable over the recorded window; "
            "record with a smaller window, or train with a lower learning rate or more warm-up."
        )
    return shifts


def works_of(directory: Path, swept: Sequence[Any], draws: int) -> list[SharedCache]:
    """
    The directories of intermediate results, one for each draw of random rows.

    Args:
        directory (`Path`): of the record's scores.
        swept (`Sequence`): all that the sketched window depends on.
    """
    names = [Hasher.hash([FORMAT, *swept, draw]) for draw in range(draws)]
    return [SharedCache(directory / f"{PREFIX}{name}", Processes.current()) for name in names]


def check_shared(trajectory: str | os.PathLike[str] | Trajectory, function: str) -> None:
    """
    Raises:
        `UnsupportedError`: if processes of a launch have disks of their own, so that they could not share the work.
    """
    directory = trajectory.path if isinstance(trajectory, Trajectory) else Path(trajectory)
    processes = Processes.current()
    if any(processes.gather(processes.first_that_sees(directory))):
        raise UnsupportedError(
            f"{function} by several processes needs a directory that all of them see, and {directory} is another one "
            "on some machines: put the record on a common disk, or score by the processes of one machine that has it "
            "whole."
        )


def check_same(key: str, function: str) -> None:
    """
    Raises:
        `ValueError`: if processes of a launch ask for different things, and would wait for each other forever.
    """
    if Processes.current().broadcast(key) != key:
        raise ValueError(
            f"The processes of this launch call {function} with different arguments: pass the same rows, model and "
            "settings in each of them."
        )
