"""`add_influence`: the influence columns of a dataset, as a `Dataset.map`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from torch import nn
from transformers.utils import logging

from hf_prune.digest import column_digests, content_digest
from hf_prune.influence.checks import check_arguments, check_dataset, row_positions
from hf_prune.influence.directions import loss_direction, output_directions, parameter_directions
from hf_prune.influence.gradients import example_gradients
from hf_prune.influence.info import with_scoring
from hf_prune.influence.objective import Objective
from hf_prune.influence.rows import Rows
from hf_prune.influence.sweep import Segment, Sweep
from hf_prune.record.trajectory import Trajectory

logger = logging.get_logger(__name__)

# Columns made by another version of the computation must not come from the cache.
VERSION = "influence/v1"
# Rows a forward pass takes when the user does not say.
BATCH_SIZE = 32
# Training rows that stand in for held-out ones when there are none.
PROBE_ROWS = 256


def add_influence(
    dataset: Dataset,
    trajectory: str | Path | Trajectory,
    *,
    model: nn.Module,
    eval_dataset: Dataset | None = None,
    directions: int = 64,
    space: str = "outputs",
    mode: str = "expected",
    curvature: str = "auto",
    batch_size: int | None = None,
    num_proc: int | None = None,
    data_collator: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    seed: int = 0,
    column: str = "influence",
) -> Dataset:
    """
    Adds to every training row how the trained model would change without it.

    - `influence` (`List(float32, k)`): the shift of k questions asked of the model if the row is removed. The last
      quarter of them are audit directions, which selection never optimises.
    - `influence_norm` (`float32`): its length. With `space="outputs"` it estimates the root mean square shift of a
      held-out row's logit vector, with `"parameters"` the length of the parameters' shift.
    - `influence_eval_loss` (`float32`, with an `eval_dataset`): the predicted change of the mean held-out loss;
      positive: removing the row hurts.

    What to trust: norms, groups and subsets; not the sign of one row's effect on the held-out loss.

    Args:
        dataset (`Dataset`):
            The rows that the Trainer got as `train_dataset`, in the same order; further columns are fine.
        trajectory (`str`, `Path` or `Trajectory`):
            What [`TrajectoryCallback`] recorded.
        model (`nn.Module`):
            The trained model. It is copied, and left as it is.
        eval_dataset (`Dataset`, *optional*):
            Held-out rows, neither in the training nor in the test set. Without it, outputs on training rows are asked.
        directions (`int`, *optional*, defaults to 64):
            k, the number of questions.
        space (`str`, *optional*, defaults to `"outputs"`):
            `"outputs"`: random signed sums of held-out logits; `"parameters"`: random projections of the parameters.
        mode (`str`, *optional*, defaults to `"expected"`):
            `"expected"`: in expectation over the order of batches; `"visits"`: through the row's own recorded visits.
        curvature (`str`, *optional*, defaults to `"auto"`):
            `"exact"`, `"gauss-newton"`, `"fisher"` (cheapest) or `"none"`; auto: Gauss-Newton for Adam, exact for SGD.
        batch_size (`int`, *optional*, defaults to 32):
            Rows in one forward pass.
        num_proc (`int`, *optional*):
            Processes for the pass over the rows, as in `Dataset.map`.
        data_collator (`Callable`, *optional*):
            As given to the Trainer. By default rows are stacked, and token sequences padded.
        loss (`Callable`, *optional*):
            `(logits, labels) -> (batch,)` losses, where the run was trained on another loss than the model's own.
        seed (`int`, *optional*, defaults to 0):
            Seed of the random directions.
        column (`str`, *optional*, defaults to `"influence"`):
            Name of the columns.

    Returns:
        `Dataset`: the same rows with the columns; a second call with the same arguments comes from the cache.

    Raises:
        `TrajectoryError`: for a damaged trajectory, or one of another dataset or model.
        `UnsupportedError`: for an optimizer or a loss that has no adjoint here.
        `TypeError`, `ValueError`: for arguments that cannot be worked with.
    """
    check_arguments(dataset, eval_dataset, directions, space, mode, curvature)
    record = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(trajectory)
    check_dataset(dataset, record)
    if curvature == "auto":
        curvature = "exact" if record.manifest.optimizer["name"] == "SGD" else "gauss-newton"
    if eval_dataset is None:
        logger.warning(
            "No eval_dataset: influence is on the outputs of training rows, and no held-out loss is predicted."
        )
    scoring = {
        "version": VERSION, "mode": mode, "space": space, "curvature": curvature, "directions": directions,
        "seed": seed, "column": column, "eval_digest": None if eval_dataset is None else content_digest(eval_dataset),
    }  # fmt: skip
    scorer = Scorer(dataset, record, model, eval_dataset, scoring, batch_size or BATCH_SIZE, data_collator, loss)
    k = List(Value("float32"), length=directions)
    features = Features({**dataset.features, column: k, f"{column}_norm": Value("float32")})
    if eval_dataset is not None:
        features[f"{column}_eval_loss"] = Value("float32")
    fingerprint = Hasher.hash([dataset._fingerprint, scoring, record.digest, scorer.fixed_digest(), repr(loss)])
    if num_proc is not None and num_proc > 1:
        scorer.prepare()
    scored = dataset.map(
        scorer, batched=True, batch_size=batch_size or BATCH_SIZE, with_indices=True, num_proc=num_proc,
        features=features, new_fingerprint=fingerprint, desc="Scoring rows",
    )  # fmt: skip
    run = {"digest": record.digest, "manifest": record.manifest.to_dict()}
    return with_scoring(scored, {"trajectory": run, "influence": scoring, "column_digests": column_digests(dataset)})


class Scorer:
    """What the map calls on each batch of rows; sweeps on the first one, so that a cached result costs no sweep."""

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
        self.rows = Rows(dataset, model, data_collator)
        self.held_out = None if eval_dataset is None else Rows(eval_dataset, model, data_collator)
        self.visits: np.ndarray | None = None
        self.segments: list[Segment] = []
        self.shares: np.ndarray | None = None

    def fixed_digest(self) -> str:
        """Identifies what is taken from the model and not from the trajectory."""
        return Hasher.hash({name: value.cpu().numpy() for name, value in self.objective.fixed.items()})

    def prepare(self) -> None:
        """Sweeps, once."""
        if self.visits is not None or self.segments:
            return
        sweep = Sweep(
            self.trajectory, self.objective, self.rows, curvature=self.scoring["curvature"],
            positions=self.positions, own_loss=self.own_loss,
        )  # fmt: skip
        questions = self._questions()
        if self.scoring["mode"] == "visits":
            self.visits = sweep.visits(questions)
        else:
            self.segments = sweep.segments(questions)
            self.mean_items = self._mean_items()

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
        batch = self.rows.batch(range(min(len(self.rows), 1024)))
        return float(self.objective.items(batch).mean())

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
