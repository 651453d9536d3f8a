"""A disk that fills up ends recording with a clear error, and what was recorded stays readable."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hf_prune import RecordingError
from hf_prune.record import TrajectoryCallback
from hf_prune.record.snapshot_writer import disk_warning
from hf_prune.trajectory import Trajectory
from tests.toys import Mlp, train, vectors


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Lets the kernel refuse to write beyond this size, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LEDGER_FILLS, SNAPSHOT_FILLS = 5_000, 60_000
HIDDEN = {LEDGER_FILLS: 8, SNAPSHOT_FILLS: 1000}  # a snapshot of under 1 kB, or of 96 kB
STEPS = {LEDGER_FILLS: 5, SNAPSHOT_FILLS: 0}  # the first snapshot is that of step 0


@pytest.mark.parametrize("size", [LEDGER_FILLS, SNAPSHOT_FILLS])
def test_full_disk_raises_and_keeps_the_steps_before(size: int, tmp_path: Path) -> None:
    model = Mlp(hidden=HIDDEN[size])
    with files_end_at(size), pytest.raises(RecordingError, match=r"cannot be written .*free disk space"):
        train(model, vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")])
    trajectory = Trajectory.open(tmp_path / "t")
    assert STEPS[size] < len(trajectory) < 32
    assert not trajectory.manifest.complete
    assert size == LEDGER_FILLS or trajectory.snapshot_steps == []
    assert not list((tmp_path / "t").rglob("*.tmp"))


@pytest.mark.parametrize("size", [LEDGER_FILLS, SNAPSHOT_FILLS])
def test_stop_recording_lets_training_go_on(size: int, tmp_path: Path) -> None:
    callback = TrajectoryCallback(tmp_path / "t", on_error="stop-recording")
    with files_end_at(size):
        trainer = train(Mlp(hidden=HIDDEN[size]), vectors(), tmp_path / "out", [callback])
    assert trainer.state.global_step == 32
    trajectory = Trajectory.open(tmp_path / "t")
    assert STEPS[size] < len(trajectory) < 32
    assert "cannot be written" in (trajectory.manifest.stopped or "")


def test_a_record_that_will_not_fit_is_announced() -> None:
    text = disk_warning(each=10, count=3, free=29)
    assert text is not None
    assert "will not fit" in text
    assert disk_warning(each=10, count=3, free=31) is None
