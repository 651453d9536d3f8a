"""Scoring by several processes of one launch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers.testing_utils import get_torch_dist_unique_port

from hf_prune import TrajectoryCallback
from tests import toys
from tests.influence.score_together import SCORINGS, score


def test_scores_do_not_depend_on_the_number_of_processes(tmp_path: Path):
    torch.manual_seed(0)
    model = toys.Mlp()
    toys.train(model, toys.vectors(40), tmp_path, [TrajectoryCallback(tmp_path / "t")], learning_rate=3e-3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    alone = {name: score(tmp_path, model, name) for name in SCORINGS}
    shutil.rmtree(tmp_path / "t" / "scores")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
        str(get_torch_dist_unique_port()), "-m", "tests.influence.score_together", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    for name, expected in alone.items():
        for rank in range(2):
            together = np.load(tmp_path / f"{name}-{rank}.npy")
            assert np.linalg.norm(together - expected) < 1e-5 * np.linalg.norm(expected), name
