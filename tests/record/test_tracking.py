"""Figures of a record get to the trackers that the Trainer reports to; read back from what the trackers wrote."""

import pytest

from hf_prune.record import TrajectoryCallback
from hf_prune.record.tracking import PREFIX, log_scoring
from tests.toys import Mlp, train, vectors

NAMES = {"recorded_steps", "snapshots", "record_mb", "recorder_seconds"}


def recorded(tmp_path, **overrides):
    """A run of 4 epochs of 4 steps."""
    callback = TrajectoryCallback(tmp_path / "trajectory")
    return train(Mlp(), vectors(32), tmp_path / "out", [callback], **overrides)


def check(figures: dict[str, float], tmp_path) -> None:
    root = tmp_path / "trajectory"
    assert figures["recorded_steps"] == 16
    assert figures["snapshots"] == len(list((root / "snapshots").iterdir()))
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) / 2**20
    assert figures["record_mb"] == pytest.approx(size, rel=0.05)  # the manifest still changes at the very end
    assert figures["recorder_seconds"] > 0


def test_tensorboard_shows_them_in_the_trainers_own_run(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorded(tmp_path, report_to=["tensorboard"], logging_strategy="steps", logging_steps=8)
    (run,) = {file.parent for file in (tmp_path / "out").rglob("events.out.tfevents.*")}
    found = accumulator.EventAccumulator(str(run)).Reload()
    names = set(found.Tags()["scalars"])
    assert {PREFIX + name for name in NAMES} | {"train/loss"} <= names
    events = {name: found.Scalars(PREFIX + name) for name in NAMES}
    assert {len(event) for event in events.values()} == {1}
    assert {event[0].step for event in events.values()} == {16}
    check({name: event[0].value for name, event in events.items()}, tmp_path)


def test_trackio_shows_them_in_the_trainers_own_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    settings = {"project": "tested", "run_name": "one", "logging_strategy": "steps", "logging_steps": 8}
    recorded(tmp_path, report_to=["trackio"], **settings)
    logs = sqlite_storage.SQLiteStorage.get_logs("tested", "one")
    assert any("train/loss" in log for log in logs)
    (found,) = [log for log in logs if PREFIX + "snapshots" in log]
    check({name: found[PREFIX + name] for name in NAMES}, tmp_path)


def test_without_a_tracker_nothing_is_written(tmp_path):
    recorded(tmp_path)
    assert not list(tmp_path.rglob("events.out.*"))
    log_scoring({"rows": 3})  # and no open run is no error
