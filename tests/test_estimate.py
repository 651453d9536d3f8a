"""The estimate made before training is what the record then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer

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


@settings(max_examples=15)
@given(
    rows=st.integers(1, 90),
    batch=st.integers(1, 20),
    accumulation=st.integers(1, 4),
    drop_last=st.booleans(),
    length=st.one_of(st.floats(0.2, 5), st.integers(1, 30)),
)
def test_steps_are_those_that_the_trainer_plans(
    rows: int, batch: int, accumulation: int, drop_last: bool, length: float
) -> None:
    settings = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "dataloader_drop_last": drop_last and rows >= batch,
    } | ({"max_steps": length} if isinstance(length, int) else {"num_train_epochs": length})
    args = arguments("unused", **settings)
    trainer = Trainer(Mlp(), args, train_dataset=vectors(rows))
    planned = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    told = estimate(Mlp(), args, rows, window=1.0, step_seconds=0.5)
    assert told.total_steps == planned[-1]
    assert told.snapshots >= 2
    assert told.disk_bytes == told.ledger_bytes + told.snapshots * told.snapshot_bytes
    assert told.peak_disk_bytes >= told.disk_bytes
    assert told.parameters == sum(parameter.numel() for parameter in Mlp().parameters())


@given(
    directions=st.tuples(st.integers(1, 256), st.integers(1, 256)),
    window=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    epochs=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(max_examples=25)
def test_more_of_anything_costs_no_less(
    directions: tuple[int, int], window: tuple[float, float], epochs: tuple[int, int]
) -> None:
    few, many = (
        estimate(Mlp(), arguments("unused", num_train_epochs=e), 64, window=w, directions=k)
        for k, w, e in zip(*map(sorted, (directions, window, epochs)), strict=True)
    )
    # At its peak a record also holds snapshots from before the window, of which a small window may have one more.
    for name in (
        "ledger_bytes",
        "disk_bytes",
        "scoring_disk_bytes",
        "least_scoring_disk_bytes",
        "scoring_memory_bytes",
    ):
        assert getattr(few, name) <= getattr(many, name), name
    assert few.scoring_steps <= many.scoring_steps
