"""Scoring by several processes of one launch."""

from __future__ import annotations

import copy
import json
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
    few = TrajectoryCallback(tmp_path / "few", snapshots_per_epoch=2)
    toys.train(copy.deepcopy(model), toys.vectors(40), tmp_path, [few], max_steps=3, save_strategy="no")
    alone = {name: score(tmp_path, model, name) for name in SCORINGS}
    alone |= {f"attribution {engine}": ask(tmp_path, model, engine) for engine in ENGINES}
    for name in ("t", "few"):
        shutil.rmtree(tmp_path / name / "scores")
    launch("tests.influence.score_together", tmp_path)
    for name, expected in alone.items():
        for rank in range(2):
            together = np.load(tmp_path / f"{name}-{rank}.npy")
            assert np.linalg.norm(together - expected) < 1e-5 * np.linalg.norm(expected), name
    assert (alone["unvisited"] != 0).any(1).all()
    assert not list(tmp_path.rglob("shares-*"))
    read = [json.loads((tmp_path / f"read-{rank}.json").read_text()) for rank in range(2)]
    assert read[0].keys() == read[1].keys()
    for name in read[0]:
        assert sorted(one[name] for one in read) == [1, 2], "by both for the sweep, and by one for its visits"
