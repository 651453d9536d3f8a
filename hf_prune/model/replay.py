"""A recorded run as it went: the parameters, the batch, its weights and the preconditioner of every step."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from hf_prune.errors import TrajectoryError, UnsupportedError
from hf_prune.model.agreement import Observed, measure_reduction, observe
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.comparison import step_of_model
from hf_prune.model.draws import draw_shares
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows, label_names
from hf_prune.model.weights import EVEN, Reduction, WeightedBatch, denominators
from hf_prune.optimizers import GroupLayout, OptimizerAdjoint, adjoint_class
from hf_prune.trajectory.trajectory import Step, Trajectory


class Replay:
    """
    Reads a recorded run together with its model and its rows.

    Args:
        trajectory (`Trajectory`): the recorded run.
        objective (`Objective`): the model as a function of the recorded parameters.
        rows (`Rows`): the training rows.
        positions (`dict[int, int]`, *optional*): row of each recorded id; by default an id is a row's position.
        own_loss (`bool`, *optional*, defaults to `False`): whether the user gave the loss.

    Attributes:
        max_norm (`float`): the Trainer's `max_grad_norm`, 0 for no clipping.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        objective: Objective,
        rows: Rows,
        *,
        positions: dict[int, int] | None = None,
        own_loss: bool = False,
    ):
        self.trajectory, self.objective, self.rows = trajectory, objective, rows
        self.positions, self.own_loss = positions, own_loss
        self.max_norm = float(trajectory.manifest.max_grad_norm or 0.0)
        self._reduction: Reduction | None = None
        self._mean_items: float | None = None
        self._direction: tuple[int, torch.Tensor] | None = None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        trajectory: Trajectory,
        model: nn.Module,
        *,
        data_collator: Callable[..., Any] | None = None,
        loss: Callable[..., Any] | None = None,
    ) -> Replay:
        """
        The run that `model` was trained in on `dataset`.

        Args:
            data_collator, loss (`Callable`, *optional*): as in `add_influence`.
        """
        manifest = trajectory.manifest
        objective = Objective(
            model,
            manifest.parameters,
            loss=loss,
            label_names=label_names(manifest),
            smoothing=manifest.label_smoothing,
            pairs=manifest.pairs,
        )
        rows = Rows(dataset, objective.model, data_collator, manifest, objective.forward)
        positions = row_positions(dataset, trajectory)
        return cls(trajectory, objective, rows, positions=positions, own_loss=loss is not None)

    def end(self, until: int | None) -> Trajectory:
        """
        Ends the run at the step `until`, by default at the one whose model this is, and returns its record.

        Raises:
            `TrajectoryError`, `ValueError`: for another model, or a step without a snapshot.
        """
        whole = self.trajectory
        if until is not None:
            whole.until(until)  # for its check
        step = step_of_model(self.objective, whole, until)
        if step != whole.window[1]:
            self.trajectory = whole.until(step)
        return self.trajectory

    @property
    def last(self) -> int:
        """The number of optimizer steps after which the window ends."""
        return self.trajectory.window[1]

    @property
    def rounded(self) -> bool:
        """Whether parameters are known in half precision alone, so that what a step moved them by is not."""
        return self.objective.rounded or self.trajectory.manifest.snapshot_dtype != "float32"

    def steps(self) -> list[Step]:
        """The steps of the window whose update was made."""
        found = (self.trajectory.step(t) for t in range(*self.trajectory.window))
        return [step for step in found if not step.skipped]

    def theta(self, t: int) -> torch.Tensor:
        """The parameters `(p,)` before step `t`, in the objective's precision and on its device."""
        return self.trajectory.parameters_at(t).to(self.objective.device, self.objective.dtype)

    def second_moment(self, t: int) -> torch.Tensor:
        """Adam's second moment `(p,)` after `t` steps, likewise."""
        return self.trajectory.second_moment_at(t).to(self.objective.device, self.objective.dtype)

    def denominator(self, t: int) -> torch.Tensor | None:
        """
        What the update of step `t` divides by, `(p,)`; `None` for an optimizer without a second moment. Its reciprocal
        is the optimizer's preconditioner.
        """
        manifest = self.trajectory.manifest
        adjoint = adjoint_class(manifest.optimizer["name"])
        if not adjoint.has_second_moment:
            return None
        layout = GroupLayout(self.objective.sizes, [parameter.group for parameter in manifest.parameters])
        moment, updates = self.second_moment(t + 1), self.trajectory.updates_before(t)
        return adjoint.denominator(manifest.optimizer["groups"], layout, moment, updates)

    def direction(self, t: int, adjoint: OptimizerAdjoint) -> torch.Tensor:
        """What the learning rate multiplies in the update of step `t`, in the mean over its segment, `(p,)`."""
        segment = self.segment_of(t)
        if self._direction is None or self._direction[0] != segment:
            first, last = self.trajectory.snapshot_steps[segment : segment + 2]
            moved = self.theta(first) - self.theta(last)
            steps = (self.trajectory.step(own) for own in range(first, last))
            made = ((step.learning_rates, self.theta(step.index)) for step in steps if not step.skipped)
            self._direction = segment, adjoint.direction(moved, made)
        return self._direction[1]

    def clips(self, step: Step) -> bool:
        """Whether the step's gradient was clipped."""
        return 0 < self.max_norm < step.grad_norm

    def row_of(self, ids: Iterable[int]) -> np.ndarray:
        """The rows of recorded ids."""
        found = ids if self.positions is None else [self.positions[int(i)] for i in ids]
        return np.array(found, dtype=np.int64)

    def batch(self, step: Step) -> WeightedBatch:
        """All visits of a step, collated as one batch."""
        rows = self.row_of(step.ids)
        batch = self.rows.batch(rows.tolist())
        return WeightedBatch(rows, batch, *self._weights(step, [batch]))

    def micro_batches(self, step: Step) -> list[WeightedBatch]:
        """The same visits, micro-batch by micro-batch."""
        rows = [self.row_of(micro.ids) for micro in step.micro_batches]
        batches = [self.rows.batch(part.tolist()) for part in rows]
        sizes = [len(part) for part in rows]
        split = [values.split(sizes) for values in self._weights(step, batches)]
        return [WeightedBatch(*part) for part in zip(rows, batches, *split, strict=True)]

    def _weights(self, step: Step, batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights, items of a denominator that counts tokens, and groups that share one, each `(B,)`."""
        items = torch.cat([self.objective.items(batch) for batch in batches])
        weights = self.reduction.weights(step, items)
        if not self.counts_tokens(batches[0]):
            nothing = torch.zeros_like(items)
            return weights, nothing, denominators(step, weights, nothing)
        return weights, _counted(batches, weights, items), denominators(step, weights, items)

    def counts_tokens(self, batch: Batch) -> bool:
        """Whether the loss is a mean over tokens: then a batch that loses a row has a smaller denominator."""
        return self.objective.loss(batch).counts_tokens(batch.labels)

    def _find_reduction(self, step: Step, batch: Batch) -> Reduction:
        """How losses became one number: the model's own mean, or what the recorded objective tells of another's."""
        if self.trajectory.manifest.loss != "custom":
            counted = any(micro.num_items is not None for micro in step.micro_batches)
            return Reduction(counted and self.objective.uses_items(batch))
        if not self.own_loss and not self.objective.smoothing and self.trajectory.manifest.pairs is None:
            raise UnsupportedError(
                "The run was trained on another loss than the one its model returns (by compute_loss or "
                "compute_loss_func), or on more than that; pass loss=, a function (logits, labels, inputs) -> losses "
                "of shape (batch,), or a pair of these and of the weights of the mean; or one (model, batch) -> "
                "losses."
            )
        return measure_reduction(self)

    @cached_property
    def observed(self) -> list[Observed]:
        """Some steps of the window, computed again as they were trained."""
        return observe(self)

    @property
    def reduction(self) -> Reduction:
        """How one number was made of a micro-batch's losses."""
        if self._reduction is None:
            step = self.steps()[0]
            self._reduction = self._find_reduction(
                step, self.rows.batch(self.row_of(step.micro_batches[0].ids).tolist())
            )
        return self._reduction

    @property
    def middles(self) -> list[int]:
        """The step in the middle of each segment, a segment being the steps between two snapshots."""
        return [(a + b) // 2 for a, b in itertools.pairwise(self.trajectory.snapshot_steps)]

    def segment_of(self, t: int) -> int:
        """The segment that step `t` of the window lies in."""
        return bisect.bisect_right(self.trajectory.snapshot_steps, t) - 1

    def item_shares(self, rows: Rows, batch_size: int) -> np.ndarray:
        """
        The weight `(m,)` that each row's loss has in the mean loss of the visits, float64: the row's share of draws
        (see [`draw_shares`]), times its share of labelled tokens where the loss is a mean over these. Rows other than
        those of training count as if each were drawn as often as one of n.
        """
        items = self._items(rows, batch_size)
        if rows is self.rows:
            return self.draw_shares * items / (self.draw_shares @ items)
        if self._mean_items is None:  # once, for all parts of a pool
            self._mean_items = float(self.draw_shares @ self._items(self.rows, batch_size))
        return items / self._mean_items / len(self.rows)

    @cached_property
    def draw_shares(self) -> np.ndarray:
        """The share of the recorded visits that each training row has in expectation, `(n,)`."""
        ids = np.concatenate([step.ids for step in self.trajectory.steps()])
        return draw_shares(np.bincount(self.row_of(ids), minlength=len(self.rows)))

    def _items(self, rows: Rows, batch_size: int) -> np.ndarray:
        """The number of items of each row's loss, `(m,)`."""
        if not self.own_loss and not self.counts_tokens(rows.batch([0])):
            return self._labelled(rows.dataset)
        bar = "Counting items" if rows is self.rows else None
        counts = [self.objective.items(batch) for _, batch in rows.batches(batch_size, bar)]
        return torch.cat(counts).cpu().double().numpy()

    def _labelled(self, dataset: Dataset) -> np.ndarray:
        """1 for each row, 0 for those whose class is to be ignored."""
        column = self.trajectory.manifest.label_column
        if column not in dataset.column_names or not hasattr(dataset.features[column], "dtype"):
            return np.ones(len(dataset))
        return (np.asarray(dataset.with_format("numpy")[column][:]) != IGNORED).astype(np.float64)


def _counted(batches: list[Batch], weights: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """
    What each visit adds to the denominator, `(B,)`: its items, or all its labelled tokens where the Trainer divided by
    the number of these; a loss of next tokens looks at one a row less.
    """
    labelled = torch.cat([(batch.labels != IGNORED).flatten(1).sum(1) for batch in batches]).to(items)
    per_item = weights[items > 0] / items[items > 0]
    of_labelled = len(per_item) > 0 and bool(((per_item * labelled.sum() - 1).abs() < EVEN).all())
    return labelled if of_labelled else items


def row_positions(dataset: Dataset, trajectory: Trajectory) -> dict[int, int] | None:
    """
    The row of each recorded id, or `None` where ids are positions.

    Raises:
        `TrajectoryError`: when the dataset's ids are not those that were recorded.
    """
    column = trajectory.id_column
    if column is None:
        return None
    if column not in dataset.column_names:
        raise TrajectoryError(
            f"Rows were recorded by the id column {column!r}, which is missing from this dataset; keep it."
        )
    ids = dataset.with_format(None)[column]
    positions = {int(row): place for place, row in enumerate(ids)}
    unknown = {int(i) for step in trajectory.steps() for i in step.ids} - positions.keys()
    if unknown:
        raise TrajectoryError(
            f"{len(unknown)} recorded ids are not in column {column!r} (the first is {min(unknown)}); pass the rows "
            "that were trained on, with the same ids."
        )
    if len(positions) != len(dataset):
        raise TrajectoryError(f"The id column {column!r} holds a value more than once; ids must be unique.")
    return positions
