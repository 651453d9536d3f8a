"""Scoring by several processes of one launch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from hf_prune import TrajectoryCallback
from tests import toys
from tests.influence.score_together import ENGINES, SCORINGS, ask, score
from tests.launch import launch


def test_scores_and_attributions_do_not_depend_on_the_number_of_processes(tmp_path: Path):
    torch.manual_seed(0)
    model = toys.Mlp()
    toys.train(model, toys.vectors(40), tmp_path, [TrajectoryCallback(tmp_path / "t")], learning_rate=3e-3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    alone = {name: score(tmp_path, model, name) for name in SCORINGS}
    alone |= {f"attribution {engine}": ask(tmp_path, model, engine) for engine in ENGINES}
    shutil.rmtree(tmp_path / "t" / "scores")
    launch("tests.influence.score_together", tmp_path)
    for name, expected in alone.items():
        for rank in range(2):
            together = np.load(tmp_path / f"{name}-{rank}.npy")
            assert np.linalg.norm(together - expected) < 1e-5 * np.linalg.norm(expected), name
