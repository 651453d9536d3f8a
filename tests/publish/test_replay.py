"""Level 2: scoring and selecting again from the recorded run keeps the same ids, or says what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_prune.influence.api import add_influence
from hf_prune.publish.replay import ReplayError, replay
from hf_prune.record.callback import TrajectoryCallback
from hf_prune.selection import prune
from tests.toys import Mlp, train, vectors


def recorded_run(directory: Path, seed: int) -> dict[str, Any]:
    model = Mlp()
    callback = TrajectoryCallback(str(directory / "trajectory"))
    train(model, vectors(), directory / "out", [callback], num_train_epochs=2, seed=seed)
    return {"trajectory": directory / "trajectory", "model": model, "eval_dataset": vectors(16, seed=1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return recorded_run(tmp_path_factory.mktemp("run"), seed=0)


@pytest.fixture(scope="module")
def published(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("published")
    prune(add_influence(vectors(), directions=8, **run), keep=0.5).save_to_disk(directory)
    return str(directory)


def test_level_2_selects_the_same_ids_from_the_trajectory(run, published):
    assert list(replay(published, source=vectors(), level=2, **run)) == list(replay(published, source=vectors()))


def test_level_2_says_which_trajectory_and_rows_differ(published, tmp_path):
    other = recorded_run(tmp_path, seed=7)
    with pytest.raises(ReplayError, match="keeps other rows") as refused:
        replay(published, source=vectors(), level=2, **other)
    words = str(refused.value)
    assert "rows are kept that were dropped" in words
    assert "the trajectory has digest" in words


def test_level_2_says_when_the_held_out_rows_differ(run, published):
    with pytest.raises(ReplayError, match="eval_digest is"):
        replay(published, source=vectors(), level=2, **(run | {"eval_dataset": vectors(16, seed=2)}))
