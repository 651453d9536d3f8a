"""A step of this process that is not written yet: it becomes one row of the ledger."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from hf_prune.errors import RecordingError
from hf_prune.record.hooks import Forward, Measured
from hf_prune.record.support import check_forward
from hf_prune.trajectory.ledger import LedgerRow
from hf_prune.trajectory.visits import StatisticsRow

# A loss that lies further from its share of the objective, as a share of it, is not all of it; in half precision more.
ROUNDING = 1e-3


class HostCopy:
    """
    A tensor on its way to the CPU. On CUDA the copy is queued, and only reading the value waits for it.

    Args:
        tensor (`torch.Tensor`): What to copy.
    """

    def __init__(self, tensor: torch.Tensor):
        tensor = tensor.detach()
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = tensor.cpu()

    @property
    def on_its_way(self) -> bool:
        return self._event is not None and not self._event.query()

    def numbers(self) -> list[float]:
        return self.tensor().reshape(-1).tolist()

    def tensor(self) -> torch.Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._host


@dataclass
class PendingMicroBatch:
    """
    One micro-batch of this process.

    Args:
        positions (`list[int]`, *optional*): What the batch sampler yielded.
        column (`HostCopy`, *optional*): The id column of the batch.
        num_items (`HostCopy` or `float`, *optional*): `num_items_in_batch`.
        loss (`HostCopy`, *optional*): The loss that the model returned.
        gradient (`HostCopy`, *optional*): What arrived at the model's loss; `None` if the Trainer did not use it.
        objective (`HostCopy`, *optional*): What the gradient was taken of.
        statistics (`HostCopy`, *optional*): Statistics of the rows, `(5, B)`, where they are recorded.
    """

    positions: list[int] | None
    column: HostCopy | None
    num_items: HostCopy | float | None
    loss: HostCopy | None
    gradient: HostCopy | None
    objective: HostCopy | None
    statistics: HostCopy | None = None

    @classmethod
    def of(cls, positions: list[int] | None, column: torch.Tensor | None, measured: Measured) -> PendingMicroBatch:
        forward, gradient = measured.forward or Forward(None, None), None
        if measured.forward is not None:
            ids = column if positions is None else positions
            rows = None if ids is None else len(ids)
            check_forward(forward, rows)
            # Without logits, or of rows of several sequences, the model's own loss is no mean of losses of rows.
            whole = forward.rows is not None and (rows in (None, forward.rows) or forward.flattened)
            gradient = forward.gradient if forward.backwards == 1 and whole else None
        num_items = forward.num_items
        return cls(
            positions=positions,
            column=_copy(column),
            num_items=HostCopy(num_items) if isinstance(num_items, torch.Tensor) else num_items,
            loss=_copy(forward.loss),
            gradient=_copy(gradient),
            objective=_copy(measured.objective),
            statistics=_copy(forward.statistics),
        )

    def scale(self, loss_scale: float) -> float | None:
        """d(objective) / d(loss that the model returned); `None` if the Trainer trained on anything else."""
        gradient = _number(self.gradient)
        if gradient is None or math.isnan(gradient):
            return None
        scale = gradient / loss_scale
        if self.loss is not None and self.objective is not None:
            loss, objective = self.loss.tensor(), float(self.objective.tensor())
            part = scale * float(loss)
            rounding = ROUNDING if loss.dtype.itemsize > 2 else 20 * ROUNDING
            if abs(objective - part) > rounding * max(abs(objective), abs(part)):
                return None  # another term lies beside it
        return scale


@dataclass
class PendingStep:
    """
    One optimizer step of this process.

    Args:
        loss_scale (`HostCopy` or `float`): The fp16 gradient scaler's factor in this step, 1 without one.
        scaled (`bool`): Whether there is a gradient scaler.
    """

    loss_scale: HostCopy | float
    scaled: bool
    micro_batches: list[PendingMicroBatch] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    grad_norm: HostCopy | None = None
    skipped: bool = False
    step: int = -1
    epoch: float = 0.0

    @property
    def on_its_way(self) -> bool:
        """Whether the accelerator has yet to finish the step."""
        return self.grad_norm is not None and self.grad_norm.on_its_way

    def row(self, world_size: int, row_ids: np.ndarray | None) -> LedgerRow:
        """
        The ledger's row.

        Args:
            world_size (`int`): Number of processes; DDP averages gradients over them.
            row_ids (`np.ndarray`, *optional*): The id column of the whole dataset, where it is known.
        """
        loss_scale = _known(self.loss_scale)
        norm = math.nan if self.grad_norm is None else float(self.grad_norm.numbers()[0])
        return LedgerRow(
            step=self.step,
            epoch=self.epoch,
            ids=[_ids(batch, row_ids) for batch in self.micro_batches],
            scales=[_over(batch.scale(loss_scale), world_size) for batch in self.micro_batches],
            losses=[_over(_number(batch.objective), world_size) for batch in self.micro_batches],
            num_items=[_number(batch.num_items) for batch in self.micro_batches],
            learning_rates=self.learning_rates,
            grad_norm=norm,
            # A fused optimizer skips inside its kernel, and accelerate then says that nothing was skipped.
            skipped=self.skipped or (self.scaled and not math.isfinite(norm)),
        )

    def statistics(self, row: LedgerRow) -> StatisticsRow | None:
        """The statistics of the rows that the ledger's row names; `None` if some have none."""
        batches = [batch.statistics.tensor().numpy() for batch in self.micro_batches if batch.statistics is not None]
        seen, named = [batch.shape[1] for batch in batches], [len(ids) for ids in row.ids]
        return StatisticsRow.of(self.step, batches) if seen == named else None


def _number(value: HostCopy | float | None) -> float | None:
    return None if value is None else _known(value)


def _known(value: HostCopy | float) -> float:
    return float(value.numbers()[0]) if isinstance(value, HostCopy) else float(value)


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None or not math.isfinite(value) else value / divisor


def _copy(tensor: torch.Tensor | None) -> HostCopy | None:
    return None if tensor is None else HostCopy(tensor)


def _ids(batch: PendingMicroBatch, row_ids: np.ndarray | None) -> list[int]:
    carried = None if batch.column is None else [int(i) for i in batch.column.numbers()]
    if batch.positions is None:
        if carried is None:
            raise RecordingError(
                "A training batch carries no id column, so its rows are unknown: number the rows with "
                "hf_prune.record.with_example_ids(dataset), pass remove_unused_columns=False, and use a collator that "
                "keeps the column."
            )
        return carried
    sampled = batch.positions if row_ids is None else [int(i) for i in row_ids[batch.positions]]
    if carried is None or (row_ids is None and len(carried) == len(sampled)):
        return sampled if carried is None else carried
    if carried != sampled:
        raise RecordingError(
            f"The batch sampler says rows {sampled[:8]}, the batch itself says {carried[:8]}: something between them "
            "reorders rows; give the Trainer its own dataloader and a collator that keeps rows and order."
        )
    return carried
