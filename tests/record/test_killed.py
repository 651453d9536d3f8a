"""kill -9 at any moment leaves a record that opens and is right up to the last finished step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from hf_prune.trajectory import Trajectory
from hf_prune.trajectory.files import MANIFEST

TIMES = 24


def test_killed_recording_is_valid_to_the_last_step(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.record.killed", str(tmp_path), str(TIMES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    whole = Trajectory.open(tmp_path / "whole" / "trajectory")
    truth = whole.steps()
    lengths = []
    for index in range(TIMES):
        place = tmp_path / f"run-{index}"
        finished = int((place / "finished-steps").read_text())
        if finished == 0 and not (place / "trajectory" / MANIFEST).exists():
            continue  # killed before recording began
        trajectory = Trajectory.open(place / "trajectory")
        lengths.append(len(trajectory))
        assert len(trajectory) in (finished, finished + 1)  # the row is written before the step is told
        assert trajectory.steps() == truth[: len(trajectory)]
        for step in trajectory.snapshot_steps:
            if step in whole.snapshot_steps:
                assert torch.equal(trajectory.parameters_at(step), whole.parameters_at(step))
    assert len(set(lengths)) > TIMES // 2
