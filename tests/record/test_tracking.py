"""Figures of a record get to the trackers that the Trainer reports to; read back from what the trackers wrote."""

import json
import struct
from collections.abc import Iterator

import pytest

from hf_prune import add_influence
from hf_prune._core.trackers import PREFIX, log_scoring
from hf_prune.record import TrajectoryCallback
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
    files = [file for file in root.rglob("*") if file.is_file() and root / "scores" not in file.parents]
    size = sum(file.stat().st_size for file in files) / 2**20
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


def test_trackio_shows_scoring_in_a_run_that_is_open(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    trainer = recorded(tmp_path)
    trackio.init(project="scored", name="one", embed=False)
    try:
        add_influence(
            vectors(32), tmp_path / "trajectory", model=trainer.model, eval_dataset=vectors(12, seed=1), directions=4
        )
    finally:
        trackio.finish()
    (found,) = [log for log in sqlite_storage.SQLiteStorage.get_logs("scored", "one") if PREFIX + "rows" in log]
    assert found[PREFIX + "rows"] == 32
    assert found[PREFIX + "steps_swept"] == 8


def test_wandb_shows_recording_and_scoring_in_the_trainers_own_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        trainer = recorded(tmp_path, report_to=["wandb"], logging_strategy="steps", logging_steps=8)
        add_influence(
            vectors(32), tmp_path / "trajectory", model=trainer.model, eval_dataset=vectors(12, seed=1), directions=4
        )
    finally:
        wandb.finish()
        wandb.teardown()  # what writes the file is a process of its own: wait for its end
    (file,) = tmp_path.rglob("*.wandb")
    logs = []
    for content in framed(file.read_bytes()):
        items = Record.FromString(content).history.item
        logs.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert any("train/loss" in log for log in logs)
    (found,) = [log for log in logs if PREFIX + "snapshots" in log]
    assert found["train/global_step"] == 16
    check({name: found[PREFIX + name] for name in NAMES}, tmp_path)
    (found,) = [log for log in logs if PREFIX + "rows" in log]
    assert found[PREFIX + "rows"] == 32
    assert found[PREFIX + "steps_swept"] == 8
    assert found[PREFIX + "seconds"] > 0


def framed(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, which W&B's offline files are in: frames in blocks of 32 KiB."""
    place, record = 7, b""  # after the file's own header
    while place < len(content):
        if 32768 - place % 32768 < 7:  # too little for a frame's header: zeros
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_without_a_tracker_nothing_is_written(tmp_path):
    recorded(tmp_path)
    assert not list(tmp_path.rglob("events.out.*"))
    log_scoring({"rows": 3})  # and no open run is no error
