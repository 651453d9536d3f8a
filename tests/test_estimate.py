"""The estimate made before training is what the record then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_prune._estimate import estimate
from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import summarize
from tests.toys import Mlp, arguments, train, vectors


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 3, "optim": "sgd"},
        {"max_steps": 11},
        {"dataloader_drop_last": True, "num_train_epochs": 2.5},
    ],
)
def test_estimate_agrees_with_the_record(settings: dict[str, Any], tmp_path: Path) -> None:
    model = Mlp(hidden=400)
    told = estimate(model, arguments(tmp_path / "out", **settings), 61)
    train(model, vectors(61), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], **settings)
    summary = summarize(tmp_path / "t")
    assert told.total_steps == summary["steps"]["recorded"]
    assert told.snapshots == len(summary["snapshots"])
    assert told.parameters == summary["parameters"]
    assert told.ledger_bytes == pytest.approx(summary["bytes"]["ledger"], rel=0.3)
    assert told.disk_bytes == pytest.approx(summary["bytes"]["ledger"] + summary["bytes"]["snapshots"], rel=0.05)


def test_estimate_follows_the_callbacks_arguments(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    whole = estimate(Mlp(), args, 64, step_seconds=0.1)
    half = estimate(Mlp(), args, 64, parameters=r"net\.2", snapshot_dtype="bfloat16")
    assert half.parameters == 51
    assert half.snapshot_bytes == 51 * 2 * 2
    assert half.scoring_seconds is None
    assert whole.disk_bytes < whole.peak_disk_bytes < 2 * whole.disk_bytes
    assert whole.scoring_seconds == pytest.approx(0.1 * whole.scoring_steps)
    assert estimate(Mlp(), args, 64, window=1.0).snapshots == 5
    with pytest.raises(ValueError, match="n_rows"):
        estimate(Mlp(), args, 0)
