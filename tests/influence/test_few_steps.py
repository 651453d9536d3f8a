"""Few steps of AdamW, where a row is a large part of the second moment: against real runs without each row."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, set_seed

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.optimizers.adam import Adam
from tests import toys

STEPS, ROWS = 12, 384


class Without(toys.Mlp):
    """Leaves a row's loss out of its batches, which keep their size."""

    left_out = -1

    def forward(self, x, labels=None, row=None):  # type: ignore[override]
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        counted = torch.ones_like(losses) if row is None else (row != self.left_out).to(losses)
        return {"loss": (losses * counted).mean(), "logits": logits}


def trained(initial: Without, rows, directory: Path, left_out: int = -1, *callbacks) -> Without:
    set_seed(0)
    model = copy.deepcopy(initial)
    model.left_out = left_out
    arguments = toys.arguments(
        directory,
        max_steps=STEPS,
        optim="adamw_torch",
        learning_rate=5e-3,
        warmup_steps=0.3,
        max_grad_norm=0.0,
        per_device_train_batch_size=32,
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks)).train()
    return model


def test_following_the_second_moment_is_nearer_to_runs_without_a_row(tmp_path: Path, monkeypatch):
    rows = toys.vectors(ROWS, noise=2.0).add_column("row", list(range(ROWS)))
    held_out = toys.vectors(60, seed=1, noise=2.0).add_column("row", [-1] * 60)
    set_seed(0)
    initial = Without()
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0, snapshots_per_epoch=6)
    model = trained(initial, rows, tmp_path / "full", -1, recorder)
    x, y = torch.tensor(held_out["x"][:]), torch.tensor(held_out["labels"][:])

    def loss(network: Without) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(network.net(x), y))

    chosen = range(0, ROWS, 24)
    truth = np.array([loss(trained(initial, rows, tmp_path / "less", row)) - loss(model) for row in chosen])
    errors = {}
    for follows in (True, False):
        monkeypatch.setattr(Adam, "follows_second_moment", follows)
        directory = tmp_path / "t" / "scores"
        for file in directory.rglob("*"):  # what was computed otherwise
            if file.is_file():
                file.unlink()
        scored = add_influence(rows, tmp_path / "t", model=model, eval_dataset=held_out, mode="visits")
        found = np.array(scored["influence_eval_loss"])[list(chosen)]
        errors[follows] = float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
    assert errors[True] < 0.3
    assert errors[True] < 0.3 * errors[False]


@pytest.mark.parametrize(("engine", "said"), [("projected", True), ("dense", False)])
def test_a_sketch_of_few_steps_is_warned_of(tmp_path: Path, caplog, engine: str, said: bool):
    rows, held_out = toys.vectors(32), toys.vectors(16, seed=1)
    set_seed(0)
    model = toys.Mlp()
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0)
    arguments = toys.arguments(tmp_path / "out", max_steps=8, optim="adamw_torch")
    Trainer(model, arguments, train_dataset=rows, callbacks=[recorder]).train()
    with caplog.at_level(logging.WARNING, logger="hf_prune"):
        add_influence(rows, tmp_path / "t", model=model, eval_dataset=held_out, engine=engine, directions=8)
    assert ("in so few steps" in caplog.text) is said
