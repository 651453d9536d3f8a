"""The record tells the batches that were made, where the Trainer looks for a size that fits into memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer, set_seed

from hf_prune import add_influence
from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import Trajectory
from tests.record.test_ledger_truth import recorded
from tests.record.truth import Telling, pad, telling_rows
from tests.toys import arguments

ROWS, ROOM = 40, 5


class Hungry(Telling):
    """Runs out of memory after some steps with batches of more than `ROOM` rows."""

    def __init__(self, rows: int, steps: int):
        super().__init__(rows)
        self.steps = steps

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.training and len(input_ids) > ROOM and len(self.seen) >= self.steps:
            self.seen.clear()
            raise RuntimeError("CUDA out of memory.")
        return super().forward(input_ids, labels)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_batch_size_that_is_found_is_the_one_recorded(steps: int, tmp_path: Path) -> None:
    set_seed(0)
    model = Hungry(ROWS, steps)
    args = arguments(tmp_path / "out", per_device_train_batch_size=8, auto_find_batch_size=True, num_train_epochs=2)
    callback = TrajectoryCallback(tmp_path / "t", window=1.0)
    Trainer(model, args, train_dataset=telling_rows(ROWS), data_collator=pad, callbacks=[callback]).train()
    record = Trajectory.open(tmp_path / "t")
    assert recorded(record) == model.seen
    assert max(map(len, model.seen)) == record.manifest.per_device_train_batch_size == ROOM
    assert record.manifest.steps_per_epoch == ROWS // ROOM
    assert record.manifest.last_step == len(record) == 2 * ROWS // ROOM
    # The Trainer keeps its optimizer, which had made updates in the attempts before.
    assert record.manifest.updates_before_start == 3 * steps
    assert len(add_influence(telling_rows(ROWS), record, model=model, data_collator=pad, directions=2)) == ROWS
