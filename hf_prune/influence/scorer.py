"""The scores of rows: from the engine's sweep, or read off row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from datasets.utils import tqdm
from torch import nn
from transformers import PretrainedConfig

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.config import ScoringConfig
from hf_prune._core.io import json_made_once
from hf_prune._core.processes import Processes
from hf_prune.errors import UnsupportedError
from hf_prune.influence.cache_eviction import in_use, remove_superseded
from hf_prune.influence.calibration import curvature_factor
from hf_prune.influence.checks import row_positions
from hf_prune.influence.dense.sweep import Segment, Sweep
from hf_prune.influence.engines import directions_at_once, in_parts
from hf_prune.influence.memory import free_memory
from hf_prune.influence.queries import loss_direction, output_directions, parameter_directions
from hf_prune.influence.sketch.engine import ProjectedEngine
from hf_prune.influence.sketch.logit_factors import FACTORED_LOGITS, logit_hessians
from hf_prune.influence.sketch.query_sketches import output_questions, parameter_questions
from hf_prune.model.losses import one_item
from hf_prune.model.objective import Objective
from hf_prune.model.per_example import example_gradients
from hf_prune.model.rows import Rows
from hf_prune.trajectory.trajectory import Trajectory

# Training rows that stand in for held-out ones when there are none.
PROBE_ROWS = 256


class Scorer:
    """
    What `Dataset.map` calls on each batch of rows. A result that comes from the cache needs no sweep.

    Args:
        dataset (`Dataset`): the rows to score.
        train_dataset (`Dataset`, *optional*): the rows that were trained on, where they are others.
        config (`ScoringConfig`): how to score, with engine and curvature chosen.
        max_memory (`int`, *optional*): bytes that a dense sweep may take.
    """

    def __init__(
        self,
        dataset: Dataset,
        trajectory: Trajectory,
        model: nn.Module,
        eval_dataset: Dataset | None,
        config: ScoringConfig,
        *,
        train_dataset: Dataset | None,
        batch_size: int,
        data_collator: Callable[..., Any] | None,
        loss: Callable[..., Any] | None,
        max_memory: int | None = None,
    ):
        self.trajectory, self.config, self.batch_size = trajectory, config, batch_size
        self.own_loss, self.max_memory = loss is not None, max_memory
        trained = dataset if train_dataset is None else train_dataset
        self.positions = row_positions(trained, trajectory)
        self.objective = Objective(model, trajectory.manifest.parameters, loss=loss)
        clone, padding = self.objective.model, trajectory.manifest.padding
        self.rows = Rows(trained, clone, data_collator, padding)
        self.targets = self.rows if train_dataset is None else Rows(dataset, clone, data_collator, padding)
        self.held_out = None if eval_dataset is None else Rows(eval_dataset, clone, data_collator, padding)
        self.shifts: np.ndarray | None = None
        self.segments: list[Segment] = []

    def model_digest(self) -> str:
        """Identifies what is taken from the model and not from the trajectory."""
        model = self.objective.model
        config = getattr(model, "config", None)
        values = {name: value.cpu().numpy() for name, value in self.objective.fixed.items()}
        return Hasher.hash(
            [str(model), config.to_json_string() if isinstance(config, PretrainedConfig) else "", values]
        )

    def prepare(self, directory: Path, sketches: Path, ranks: Processes) -> None:
        """
        Sweeps, once; what is worth keeping goes to `directory` and `sketches`, where a killed run finds it again.

        With one process, one dense sweep and the mode `"expected"`, rows are left to `Dataset.map`.
        """
        if self.shifts is not None or self.segments:
            return
        sweep = self._sweep()
        expected = self.config.mode == "expected"
        self.mean_items = float(self._items(self.rows).mean()) if expected else 1.0
        if self.config.engine == "projected":
            with in_use(sketches):
                self.shifts = self._projected(self._engine(sweep, sketches, ranks))
            if ranks.rank == 0:
                remove_superseded(sketches)
        else:
            sweep.factor, questions = self._curvature_factor(sweep, directory, ranks), self._questions()
            room = free_memory(self.objective.device) if self.max_memory is None else self.max_memory
            segments = len(self.trajectory.snapshot_steps) - 1 if expected else 0
            at_once = directions_at_once(questions.shape[1], self.config.directions, room, segments)
            if expected and ranks.world == 1 and at_once >= len(questions):
                self.segments = sweep.segments(questions)
            else:
                with in_use(directory):
                    self.shifts = in_parts(
                        directory, len(questions), at_once, ranks, lambda part: self._dense(sweep, questions[part])
                    )
        found = [torch.from_numpy(self.shifts)] if self.shifts is not None else [s.cotangents for s in self.segments]
        if not all(bool(part.isfinite().all()) for part in found):
            raise UnsupportedError(
                "The sweep ran into NaN or infinity: the adjoint of this run is not stable over the recorded window; "
                "record with a smaller window, or train with a lower learning rate or more warm-up."
            )

    def __call__(self, columns: dict[str, list[Any]], indices: list[int]) -> dict[str, np.ndarray]:
        shifts = self._expected(self.segments, indices) if self.shifts is None else self.shifts[indices]
        names, k = InfluenceColumns(self.config.column), self.config.directions
        vectors = np.ascontiguousarray(shifts[:, :k], dtype=np.float32)
        result = {names.vector: vectors, names.norm: np.linalg.norm(vectors, axis=1)}
        if self.held_out is not None:
            result[names.eval_loss] = shifts[:, k]
        return result

    def held_out_curvature(self) -> float | None:
        """
        The mean curvature of the held-out loss in a row's logits, `mean of trace(d^2 l / d z^2) / C`, at the end.

        `None` without held-out rows, or where a row has many logits.
        """
        if self.held_out is None or self.objective.width(self.held_out.batch([0])) > FACTORED_LOGITS:
            return None
        theta = self.trajectory.parameters_at(self.trajectory.window[1]).to(self.objective.device)
        total = 0.0
        for numbers in self._row_batches(self.held_out, "Reading held-out rows"):
            batch = self.held_out.batch(numbers)
            with torch.no_grad():
                logits = self.objective.logits(theta, batch.inputs)
            total += float(
                logit_hessians(self.objective.loss(batch), logits, batch.labels).diagonal(0, 1, 2).mean(1).sum()
            )
        return total / len(self.held_out)

    def _dense(self, sweep: Sweep, questions: torch.Tensor) -> np.ndarray:
        """The influence of all rows on some of the questions, `(n, k')`."""
        if self.config.mode == "visits":
            return sweep.visits(questions)
        segments = sweep.segments(questions)
        parts = [self._expected(segments, numbers) for numbers in self._row_batches(self.targets, "Scoring rows")]
        return np.concatenate(parts)

    def _curvature_factor(self, sweep: Sweep, directory: Path, ranks: Processes) -> float:
        """That of the Gauss-Newton matrix: measured once, for all processes and all later calls."""
        if self.config.curvature != "gauss-newton":
            return 1.0
        with ranks.main_first():
            return json_made_once(directory / "curvature.json", lambda: curvature_factor(sweep))

    def _sweep(self) -> Sweep:
        """The dense sweep, which the projected engine asks for rows and weights; its first step is checked."""
        sweep = Sweep(
            self.trajectory,
            self.objective,
            self.rows,
            curvature="none" if self.config.engine == "projected" else self.config.curvature,
            positions=self.positions,
            own_loss=self.own_loss,
        )
        sweep.check()
        return sweep

    def _engine(self, sweep: Sweep, sketches: Path, ranks: Processes) -> ProjectedEngine:
        """The projected engine with the window sketched and the curvature measured."""
        engine = ProjectedEngine(sweep, ranks, curvature=self.config.curvature, directory=sketches)
        engine.sweep.factor = self._curvature_factor(sweep, sketches, ranks)
        engine.prepare()
        return engine

    def _projected(self, engine: ProjectedEngine) -> np.ndarray:
        """The influence of all rows on all questions, `(n, k + 1)`."""
        config, batch_size = self.config, self.batch_size
        last = self.trajectory.window[1]
        theta, (scales, levels) = engine.theta(last), engine.work.scales(last)
        k, seed = config.directions, config.seed
        if config.space == "parameters":
            questions = parameter_questions(
                engine.work, theta, scales, self.held_out, k, batch_size=batch_size, seed=seed
            )
        else:
            rows = self.held_out if self.held_out is not None else self._probe()
            questions = output_questions(engine.work, theta, scales, rows, k, batch_size=batch_size, seed=seed)
        if config.mode == "visits":
            return engine.visits(questions, levels)
        segments = engine.segments(questions, levels)
        dots, seen = np.zeros((len(self.targets), len(questions))), np.zeros(len(self.targets), dtype=bool)
        if self.targets is self.rows:
            dots, seen = engine.expected(segments)
        new = np.flatnonzero(~seen)
        if len(new):
            dots[new] = engine.expected_of(segments, self.targets, new, batch_size)
        return -self._items(self.targets)[:, None] / self.mean_items / len(self.rows) * dots

    def _expected(self, segments: list[Segment], indices: list[int]) -> np.ndarray:
        """`-(1/n) sum_j <C_j, grad l_i(theta_j)>`, `(B, k)`, an example's loss weighted by its share of the items."""
        batch = self.targets.batch(indices)
        shares = self.objective.items(batch) / self.mean_items / len(self.rows)
        total = torch.zeros(len(batch), len(segments[0].cotangents), device=self.objective.device)
        for segment in segments:
            total -= example_gradients(self.objective, segment.theta, batch) @ segment.cotangents.T
        return (shares[:, None] * total).double().cpu().numpy()

    def _items(self, rows: Rows) -> np.ndarray:
        """The number of items of each row, `(n,)`."""
        if self.objective.loss(rows.batch([0])).items is one_item:
            return np.ones(len(rows))
        parts = [self.objective.items(rows.batch(part)) for part in self._row_batches(rows, "Counting items")]
        return torch.cat(parts).double().cpu().numpy()

    def _row_batches(self, rows: Rows, what: str) -> Any:
        numbers = list(range(len(rows)))
        starts = range(0, len(rows), self.batch_size)
        return tqdm([numbers[start : start + self.batch_size] for start in starts], desc=what, unit="batch")

    def _questions(self) -> torch.Tensor:
        """The directions `(k, p)`, and below them the gradient of the held-out loss where there are held-out rows."""
        config, objective = self.config, self.objective
        last = self.trajectory.window[1]
        theta = self.trajectory.parameters_at(last).to(objective.device, objective.dtype)
        rows = self.held_out if self.held_out is not None else self._probe()
        k, seed = config.directions, config.seed
        if config.space == "parameters":
            questions = parameter_directions(theta, k, seed=seed)
        else:
            questions = output_directions(objective, theta, rows, k, batch_size=self.batch_size, seed=seed)
        if self.held_out is None:
            return questions
        return torch.cat([questions, loss_direction(objective, theta, self.held_out, batch_size=self.batch_size)])

    def _probe(self) -> Rows:
        chosen = np.random.default_rng(self.config.seed).permutation(len(self.rows))[:PROBE_ROWS]
        return self.rows.select(sorted(int(i) for i in chosen))
