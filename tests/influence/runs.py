"""Recorded runs, and how both engines score them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import Trainer, set_seed

from hf_prune import Trajectory, TrajectoryCallback, add_influence
from hf_prune._core.processes import Processes
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.sketch.engine import SketchEngine
from hf_prune.model.replay import Replay
from tests import toys


@dataclass
class Run:
    """A recorded run and what scoring it takes."""

    model: nn.Module
    rows: Dataset
    held_out: Dataset
    path: Path
    collator: Any = None

    def score(self, engine: str, mode: str = "visits", rows: Dataset | None = None, **settings: Any) -> np.ndarray:
        """The influence columns, `(n, k + 1)`."""
        scored = add_influence(
            rows or self.rows,
            self.path,
            model=self.model,
            eval_dataset=self.held_out,
            data_collator=self.collator,
            engine=engine,
            mode=mode,
            **({"directions": 8, "curvature": "gauss-newton"} | settings),
        )
        return np.column_stack([np.array(scored["influence"]), scored["influence_eval_loss"]])

    def apart(self, mode: str = "visits", **settings: Any) -> float:
        """The distance of the two engines' columns, as a share of the dense one's length."""
        return distance(self.score("projected", mode, **settings), self.score("dense", mode, **settings))

    def projected(self, directory: Path, **settings: Any) -> SketchEngine:
        """The engine itself, which `add_influence` hides."""
        replay = Replay.of(self.rows, Trajectory.open(self.path), self.model, data_collator=self.collator)
        cache = SharedCache(directory, Processes(0, 1))
        settings = {"key": "key", "curvature": "gauss-newton", "gn_scale": 1.0, "batch_size": 8} | settings
        return SketchEngine(replay, cache, **settings)


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def record(
    model: nn.Module,
    rows: Dataset,
    held_out: Dataset,
    directory: Path,
    *,
    collator: Any = None,
    id_column: str | None = None,
    window: float = 0.5,
    snapshots_per_epoch: float = 1,
    **settings: Any,
) -> Run:
    set_seed(0)
    recorder = TrajectoryCallback(
        directory / "t", id_column=id_column, window=window, snapshots_per_epoch=snapshots_per_epoch
    )
    args = toys.arguments(directory / "out", **({"learning_rate": 3e-3} | settings))
    Trainer(model, args, train_dataset=rows, data_collator=collator, callbacks=[recorder]).train()
    return Run(model, rows, held_out, directory / "t", collator)


def mlp(directory: Path, rows: int = 40, hidden: int = 16, **settings: Any) -> Run:
    """A run of the plain module, with a window of several segments and stretches."""
    set_seed(0)
    settings = {"num_train_epochs": 6} | settings
    return record(toys.Mlp(hidden=hidden), toys.vectors(rows), toys.vectors(12, seed=9), directory, **settings)
