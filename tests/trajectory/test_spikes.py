"""A planted bad row makes a spike in a real run, and it is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, set_seed

from hf_prune import Trajectory, TrajectoryCallback
from hf_prune.trajectory import Spikes, find_spikes
from hf_prune.trajectory.spikes import _compared
from tests import toys

BAD = 17


def planted(rows: int = 96) -> Dataset:
    """Numbers to be predicted, one of which is a hundred times too large."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)).astype("float32")
    y = x @ np.array([1.0, -1.0, 0.5, 0.2], dtype="float32")
    y[BAD] = 100.0
    return Dataset.from_dict({"x": x.tolist(), "labels": y.tolist()})


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"logits": logits} | ({} if labels is None else {"loss": (logits[:, 0] - labels).square().mean()})


def spikes(directory: Path, *, statistics: bool = True, rows: Dataset | None = None, **settings: Any) -> Spikes:
    set_seed(0)
    args = toys.arguments(directory / "out", **({"learning_rate": 1e-3, "num_train_epochs": 2} | settings))
    recorder = TrajectoryCallback(directory / "t", row_statistics=statistics)
    Trainer(Line(), args, train_dataset=rows or planted(), callbacks=[recorder]).train()
    return find_spikes(Trajectory.open(directory / "t"))


def steps_with(directory: Path, row: int) -> list[int]:
    return [step.index for step in Trajectory.open(directory / "t").steps() if row in step.ids]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_bad_row_is_named_in_each_of_its_steps_and_no_other_step_is(accumulation: int, tmp_path: Path):
    settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    found = spikes(tmp_path, **settings)
    assert [spike.step for spike in found.spikes] == steps_with(tmp_path, BAD)
    assert not found.notes
    for spike in found.spikes:
        assert spike.rows[0].id == BAD
        assert spike.rows[0].deviation > 6 > spike.rows[1].deviation
        assert BAD in spike.batches[0].ids
        assert len(spike.batches) == accumulation
        assert spike.whole_step is False


def test_without_statistics_the_micro_batch_is_named_and_why_no_row_is(tmp_path: Path):
    found = spikes(tmp_path, statistics=False, gradient_accumulation_steps=4, per_device_train_batch_size=2)
    assert [spike.step for spike in found.spikes] == steps_with(tmp_path, BAD)
    for spike in found.spikes:
        assert BAD in spike.batches[0].ids
        assert len(spike.batches[0].ids) == 2
        assert spike.rows == ()
        assert spike.whole_step is None
    assert "row_statistics=True" in found.notes[0]


def test_where_an_update_moved_the_model_all_rows_of_the_next_step_are_said_to_lose(tmp_path: Path):
    """Without clipping the bad row's step throws the model off: the step after it is a spike of no row of its own."""
    found = spikes(tmp_path, optim="sgd", max_grad_norm=0.0, learning_rate=0.1, lr_scheduler_type="constant")
    thrown = steps_with(tmp_path, BAD)[0]
    by_step = {spike.step: spike for spike in found.spikes}
    assert by_step[thrown].whole_step is False
    assert by_step[thrown].rows[0].id == BAD
    assert by_step[thrown + 1].whole_step is True


def test_a_run_without_bad_rows_has_no_spike(tmp_path: Path):
    rows = planted()
    rows = rows.select([i for i in range(len(rows)) if i != BAD])
    assert spikes(tmp_path, rows=rows).spikes == ()


def test_of_a_few_steps_nothing_is_usual(tmp_path: Path):
    found = spikes(tmp_path, max_steps=5)
    assert found.spikes == ()
    assert "too few" in found.notes[0]


def test_a_falling_loss_is_no_spike_and_two_spikes_do_not_hide_each_other():
    rng = np.random.default_rng(0)
    values = np.linspace(8, 1, 80) + 0.05 * rng.normal(size=80)
    values[[40, 43]] += 4
    assert np.flatnonzero(_compared(values)[1] > 6).tolist() == [40, 43]


def test_a_loss_that_is_not_a_number_is_a_spike_and_plain_json():
    values = np.ones(30)
    values[9] = np.nan
    assert np.flatnonzero(_compared(values)[1] > 6).tolist() == [9]


def test_what_was_found_is_plain_json(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        found = spikes(tmp_path)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["spikes"][0]["rows"][0]["id"] == BAD
