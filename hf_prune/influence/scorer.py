"""The scores of rows: swept once, then read off (`visits`) or computed row by row (`expected`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import nn
from transformers import PretrainedConfig

from hf_prune.errors import UnsupportedError
from hf_prune.influence.checks import row_positions
from hf_prune.influence.directions import loss_direction, output_directions, parameter_directions
from hf_prune.influence.gradients import example_gradients
from hf_prune.influence.losses import one_item
from hf_prune.influence.objective import Objective
from hf_prune.influence.rows import Rows
from hf_prune.influence.sweep import Segment, Sweep
from hf_prune.record.trajectory import Trajectory

# Training rows that stand in for held-out ones when there are none.
PROBE_ROWS = 256


class Scorer:
    """What `Dataset.map` calls on each batch of rows. A result that comes from the cache needs no sweep."""

    def __init__(
        self,
        dataset: Dataset,
        trajectory: Trajectory,
        model: nn.Module,
        eval_dataset: Dataset | None,
        scoring: dict[str, Any],
        batch_size: int,
        data_collator: Callable[..., Any] | None,
        loss: Callable[..., Any] | None,
    ):
        self.trajectory, self.scoring, self.batch_size = trajectory, scoring, batch_size
        self.own_loss = loss is not None
        self.positions = row_positions(dataset, trajectory)
        self.objective = Objective(model, trajectory.manifest.parameters, loss=loss)
        clone, padding = self.objective.model, trajectory.manifest.padding
        self.rows = Rows(dataset, clone, data_collator, padding)
        self.held_out = None if eval_dataset is None else Rows(eval_dataset, clone, data_collator, padding)
        self.visits: np.ndarray | None = None
        self.segments: list[Segment] = []

    def model_digest(self) -> str:
        """Identifies what is taken from the model and not from the trajectory."""
        model = self.objective.model
        config = getattr(model, "config", None)
        values = {name: value.cpu().numpy() for name, value in self.objective.fixed.items()}
        return Hasher.hash(
            [str(model), config.to_json_string() if isinstance(config, PretrainedConfig) else "", values]
        )

    def prepare(self) -> None:
        """Sweeps, once."""
        if self.visits is not None or self.segments:
            return
        sweep = Sweep(
            self.trajectory, self.objective, self.rows, curvature=self.scoring["curvature"],
            positions=self.positions, own_loss=self.own_loss,
        )  # fmt: skip
        sweep.check()
        questions = self._questions()
        if self.scoring["mode"] == "visits":
            self.visits = sweep.visits(questions)
        else:
            self.segments = sweep.segments(questions)
            self.mean_items = self._mean_items()
        found = [torch.from_numpy(self.visits)] if self.visits is not None else [s.cotangents for s in self.segments]
        if not all(bool(part.isfinite().all()) for part in found):
            raise UnsupportedError(
                "The sweep ran into NaN or infinity: the adjoint of this run is not stable over the recorded window; "
                "record with a smaller window, or train with a lower learning rate or more warm-up."
            )

    def __call__(self, columns: dict[str, list[Any]], indices: list[int]) -> dict[str, np.ndarray]:
        self.prepare()
        shifts = self._expected(indices) if self.visits is None else self.visits[indices]
        name, k = self.scoring["column"], self.scoring["directions"]
        vectors = np.ascontiguousarray(shifts[:, :k], dtype=np.float32)
        result = {name: vectors, f"{name}_norm": np.linalg.norm(vectors, axis=1)}
        if self.held_out is not None:
            result[f"{name}_eval_loss"] = shifts[:, k]
        return result

    def _expected(self, indices: list[int]) -> np.ndarray:
        """`-(1/n) sum_j <C_j, grad l_i(theta_j)>`, `(B, k)`, an example's loss weighted by its share of the items."""
        batch = self.rows.batch(indices)
        shares = self.objective.items(batch) / self.mean_items / len(self.rows)
        total = torch.zeros(len(batch), len(self.segments[0].cotangents), device=self.objective.device)
        for segment in self.segments:
            total -= example_gradients(self.objective, segment.theta, batch) @ segment.cotangents.T
        return (shares[:, None] * total).cpu().numpy()

    def _mean_items(self) -> float:
        """The mean number of items of a row, over all rows."""
        if self.objective.loss(self.rows.batch([0])).items is one_item:
            return 1.0
        total = 0.0
        for start in range(0, len(self.rows), self.batch_size):
            batch = self.rows.batch(range(start, min(start + self.batch_size, len(self.rows))))
            total += float(self.objective.items(batch).sum())
        return total / len(self.rows)

    def _questions(self) -> torch.Tensor:
        """The directions `(k, p)`, and below them the gradient of the held-out loss where there are held-out rows."""
        scoring, objective = self.scoring, self.objective
        last = self.trajectory.window[1]
        theta = self.trajectory.parameters_at(last).to(objective.device, objective.dtype)
        rows = self.held_out if self.held_out is not None else self._probe()
        k, seed = scoring["directions"], scoring["seed"]
        if scoring["space"] == "parameters":
            questions = parameter_directions(theta, k, seed=seed)
        else:
            questions = output_directions(objective, theta, rows, k, batch_size=self.batch_size, seed=seed)
        if self.held_out is None:
            return questions
        return torch.cat([questions, loss_direction(objective, theta, self.held_out, batch_size=self.batch_size)])

    def _probe(self) -> Rows:
        chosen = np.random.default_rng(self.scoring["seed"]).permutation(len(self.rows))[:PROBE_ROWS]
        return self.rows.select(sorted(int(i) for i in chosen))
