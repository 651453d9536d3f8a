"""A run of two processes is made again in one."""

from __future__ import annotations

from pathlib import Path

from hf_prune.diagnosis.rerun import Rerun
from hf_prune.model.replay import Replay
from hf_prune.trajectory import Trajectory
from tests.diagnosis.test_rerun import assert_ends_as_recorded
from tests.record.statistics_truth import KINDS, rows_for
from tests.record.truth import pad
from tests.scores.test_two_processes import CASES, launch


def test_a_rerun_of_two_processes_ends_as_recorded(tmp_path: Path) -> None:
    launch(tmp_path, "accumulation", "tokens")
    for name in ("accumulation", "tokens"):
        kind, case = CASES[name]
        record = Trajectory.open(tmp_path / name / "trajectory")
        assert record.manifest.world_size == 2
        model, rows = KINDS[kind](case.rows), rows_for(kind, case.rows)
        assert_ends_as_recorded(Rerun(Replay.of(rows, record, model, data_collator=pad)))
