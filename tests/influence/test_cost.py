"""What scoring is told to take before the run is what it then takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import TrajectoryCallback, add_influence, estimate
from hf_prune._core.scoring import scoring_of
from hf_prune.influence import cache, cost, engine
from hf_prune.influence.cost import count_vjps, direction_bytes
from hf_prune.influence.dense.engine import queries_at_once
from hf_prune.influence.memory import free_memory
from hf_prune.influence.sketch import segments
from tests import toys
from tests.influence.test_objectives import language_model, lora, tagger


@pytest.mark.parametrize(("engine", "hidden"), [("dense", 64), ("projected", 22_000)])
def test_engine_and_disk_are_as_estimated(engine: str, hidden: int, tmp_path: Path):
    torch.manual_seed(0)
    model, rows, settings = toys.Mlp(hidden=hidden), toys.vectors(64), {"num_train_epochs": 2, "learning_rate": 1e-3}
    told = estimate(model, toys.arguments(tmp_path / "out", **settings), len(rows))
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], **settings)
    scored = add_influence(rows, tmp_path / "t", model=model, eval_dataset=toys.vectors(8, seed=9))
    assert told.engine == scoring_of(scored).config.engine == engine
    files = [file for file in (tmp_path / "t" / "scores").rglob("*") if file.is_file()]
    written = sum(file.stat().st_size for file in files) - rows.data.nbytes
    assert written / 2 < told.scoring_disk_bytes < 2 * written
    assert told.least_scoring_disk_bytes == told.scoring_disk_bytes or engine == "projected"
    if engine == "projected":
        assert 1.3 < told.scoring_steps / (told.total_steps // 2) < 4
        dense = 65 * 8 * 4 * told.parameters
        assert told.scoring_memory_bytes < dense


@pytest.mark.parametrize("snapshots_per_epoch", [1, 2])
def test_the_most_that_lies_on_a_small_disk_is_as_estimated(
    snapshots_per_epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (cost, engine):
        monkeypatch.setattr(module, "SMALL_SWEEP", 0)
    torch.manual_seed(0)
    model, rows = toys.Mlp(hidden=512), toys.vectors(96)
    settings: dict[str, Any] = {"num_train_epochs": 6, "learning_rate": 1e-3}
    asked = {"snapshots_per_epoch": snapshots_per_epoch}
    told = estimate(model, toys.arguments(tmp_path / "out", **settings), len(rows), directions=1, **asked)
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t", **asked)], **settings)
    taken, save = [0], cache._save

    def watched(tensors: Any, file: Path, metadata: Any) -> None:
        save(tensors, file, metadata)
        taken.append(sum(found.stat().st_size for found in (tmp_path / "t" / "scores").rglob("*") if found.is_file()))

    monkeypatch.setattr(cache, "_save", watched)
    monkeypatch.setattr(segments, "KEPT_SHARE", 0.0)
    add_influence(rows, tmp_path / "t", model=model, eval_dataset=toys.vectors(8, seed=9), directions=1)
    assert max(taken) / 2 < told.least_scoring_disk_bytes < 1.1 * max(taken)
    assert told.least_scoring_disk_bytes < told.scoring_disk_bytes / 1.5


def test_vjps_of_a_visit_by_the_models_head():
    found = [count_vjps(model) for model in (toys.Mlp(), toys.vit(), lora(), tagger(), language_model())]
    assert found == [2, 3, 3, 2, 2]


def test_processes_of_a_launch_share_the_machines_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    free = psutil.virtual_memory().available
    assert 0.15 * free < free_memory(torch.device("cpu")) < 0.35 * free


@given(size=st.integers(1, 10**6), k=st.integers(1, 300), segments=st.integers(0, 20), room=st.floats(0, 400))
def test_as_many_queries_are_swept_at_once_as_fit(size: int, k: int, segments: int, room: float):
    gradients, one = 4 * k * size, direction_bytes(size, segments)
    available = gradients + int(room * one)
    if room < 1:
        with pytest.raises(ValueError, match="use engine='projected'"):
            queries_at_once(size, k, available, segments)
        return
    found = queries_at_once(size, k, available, segments)
    assert 1 <= found <= k
    assert gradients + found * one <= available
    assert found == k or gradients + (found + 1) * one > available


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="A peak of memory is told on Linux alone.")
@pytest.mark.parametrize("shape", ["vocabulary", "activations", "parameters"])
def test_memory_is_told_within_a_half(shape: str):
    command = [sys.executable, "-m", "tests.influence.score_measured", shape]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert 1 / 1.5 < found["estimated"] / found["measured"] < 1.5
