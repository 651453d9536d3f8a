"""Influence does not depend on how the same batches were cut into processes, accumulation or attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_prune import TrajectoryCallback, add_influence
from tests.launch import launch
from tests.toys import Mlp, train, vectors


def recorded_run(directory: Path, callbacks: list[Any] | None = None, **settings: Any) -> Mlp:
    """The one run of these tests: AdamW with clipping and decay, 8 examples a step however they are cut."""
    torch.manual_seed(0)
    model = Mlp()
    recorder = TrajectoryCallback(directory / "trajectory", window=0.75)
    train(
        model,
        vectors(48),
        directory / "out",
        [recorder, *(callbacks or [])],
        num_train_epochs=3,
        weight_decay=0.01,
        max_grad_norm=0.5,
        learning_rate=5e-3,
        **settings,
    )
    return model


def influence(directory: Path, model: Mlp) -> np.ndarray:
    scored = add_influence(
        vectors(48), directory / "trajectory", model=model, eval_dataset=vectors(20, seed=3), directions=16
    )
    return np.array(scored["influence"], dtype="float64")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    directory = tmp_path_factory.mktemp("one")
    return influence(directory, recorded_run(directory, per_device_train_batch_size=8))


def assert_same(found: np.ndarray, reference: np.ndarray) -> None:
    error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    assert error < 1e-5, f"relative difference {error:.1e}"


def test_influence_does_not_depend_on_accumulation(reference: np.ndarray, tmp_path: Path):
    model = recorded_run(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert_same(influence(tmp_path, model), reference)


def test_influence_does_not_depend_on_the_number_of_processes(reference: np.ndarray, tmp_path: Path):
    launch("tests.influence.two_processes", tmp_path)
    assert_same(influence(tmp_path, Mlp()), reference)


class Interrupt(TrainerCallback):
    """Ends the process's training as a crash would, after 10 steps."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 10:
            raise KeyboardInterrupt


def test_influence_of_an_interrupted_and_resumed_run_is_the_same(reference: np.ndarray, tmp_path: Path):
    settings = {"per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 8}
    with pytest.raises(KeyboardInterrupt):
        recorded_run(tmp_path, [Interrupt()], **settings)
    model = recorded_run(tmp_path, resume=str(tmp_path / "out" / "checkpoint-8"), **settings)
    assert_same(influence(tmp_path, model), reference)


def test_the_comparison_can_fail(reference: np.ndarray, tmp_path: Path):
    other = influence(tmp_path, recorded_run(tmp_path, per_device_train_batch_size=8, seed=1))
    with pytest.raises(AssertionError):
        assert_same(other, reference)
