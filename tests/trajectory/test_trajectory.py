"""Damaged, mixed or foreign records are refused with one clear sentence; manifests survive their round trip."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_prune import TrajectoryError
from hf_prune._core.digest import column_digests
from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import Manifest, Trajectory, summarize
from tests.toys import Mlp, train, vectors


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        train(Mlp(), vectors(), root / "out", [TrajectoryCallback(root / name)])
    return root


@pytest.fixture
def record(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "one", tmp_path / "record"))


def change_manifest(record: Path, **changes: Any) -> None:
    path = record / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="no trajectory in"):
        Trajectory.open(tmp_path)


def test_newer_schema(record: Path) -> None:
    change_manifest(record, schema_version=99)
    with pytest.raises(TrajectoryError, match="upgrade hf_prune"):
        Trajectory.open(record)


@pytest.mark.parametrize("changes", [{"surprise": 1}, {"parameters": None}, {"schema_version": None}])
def test_damaged_manifest(changes: dict[str, Any], record: Path) -> None:
    change_manifest(record, **changes)
    with pytest.raises(TrajectoryError, match=r"manifest"):
        Trajectory.open(record)


def test_manifest_that_is_not_json(record: Path) -> None:
    (record / "manifest.json").write_text("{")
    with pytest.raises(TrajectoryError, match="is not JSON"):
        Trajectory.open(record)


def test_truncated_ledger_of_a_complete_run(record: Path) -> None:
    path = record / "ledger" / "rank-00000-part-000.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrajectoryError, match="ends after step 31"):
        Trajectory.open(record)


@pytest.mark.parametrize("size", range(0, 3000, 37))
def test_a_ledger_cut_at_any_byte_ends_at_a_whole_step(size: int, record: Path, runs: Path) -> None:
    change_manifest(record, complete=False, last_step=None)
    path = record / "ledger" / "rank-00000-part-000.jsonl"
    path.write_bytes(path.read_bytes()[:size])
    trajectory = Trajectory.open(record)
    assert trajectory.steps() == Trajectory.open(runs / "one").steps()[: len(trajectory)]
    assert len(trajectory) <= size // 100


@pytest.mark.parametrize(
    ("old", "new"), [(b'"step":3,', b'"step":3'), (b'"step":3,', b'"step":"3",'), (b'"ids":[[', b'"ids":[["x",')]
)
def test_a_damaged_line_is_not_read_over(old: bytes, new: bytes, record: Path) -> None:
    path = record / "ledger" / "rank-00000-part-000.jsonl"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(TrajectoryError, match=r"damaged|not of this format"):
        Trajectory.open(record)


@pytest.mark.parametrize("name", ["ledger/rank-00000-part-000.jsonl", "snapshots/step-00000024.safetensors"])
def test_files_of_two_runs_never_mix(name: str, record: Path, runs: Path) -> None:
    shutil.copy(runs / "two" / name, record / name)
    with pytest.raises(TrajectoryError, match="two runs were mixed"):
        Trajectory.open(record)


def test_truncated_snapshot(record: Path) -> None:
    path = record / "snapshots" / "step-00000024.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(TrajectoryError, match="damaged"):
        Trajectory.open(record)


def test_a_flipped_bit_in_a_snapshot_is_found_when_it_is_read(record: Path) -> None:
    path = record / "snapshots" / "step-00000024.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    trajectory = Trajectory.open(record)
    with pytest.raises(TrajectoryError, match="digest differs"):
        trajectory.parameters_at(20)


def test_manifest_round_trip_and_contents(record: Path) -> None:
    manifest = Trajectory.open(record).manifest
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    assert manifest.optimizer["name"] == "AdamW"
    assert manifest.optimizer["groups"][0]["betas"] == [0.9, 0.999]
    assert manifest.optimizer["groups"][0]["decoupled_weight_decay"] is True
    assert manifest.dataset_columns == column_digests(vectors())
    assert manifest.n_rows == 64
    assert str(record.parents[1]) not in json.dumps(manifest.to_dict())


def test_digest_identifies_the_run_wherever_it_lies(record: Path, runs: Path) -> None:
    one, two = Trajectory.open(runs / "one"), Trajectory.open(runs / "two")
    assert Trajectory.open(record).digest == one.digest
    assert one.digest != two.digest


def test_steps_outside_the_record_are_refused(record: Path) -> None:
    trajectory = Trajectory.open(record)
    for step in (-1, 32):
        with pytest.raises(IndexError, match="0 to 31"):
            trajectory.step(step)
    assert trajectory.step(31).ids.dtype == "int64"


def test_summary_counts_visits_and_weights(record: Path) -> None:
    summary = summarize(record)
    assert summary["visits_per_row"] == {"4": 64}
    assert summary["weights"] == {"loss": "model", "scales": [1.0], "micro_batches": 32, "with_num_items": 0}
    assert summary["steps"] == {"recorded": 32, "planned": 32, "per_epoch": 8, "skipped": 0}
    assert summary["window"] == [16, 32]
    assert summary["ends"] == [24, 32]
    assert json.loads(json.dumps(summary)) == summary


def test_reading_a_record_imports_no_trainer():
    script = (
        "import sys, hf_prune.trajectory; print(sorted({'transformers', 'accelerate', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_infinite_norm_to_clip_to_is_no_clipping(tmp_path: Path) -> None:
    train(Mlp(), vectors(), tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], max_grad_norm=float("inf"))
    assert Trajectory.open(tmp_path / "t").manifest.max_grad_norm == 0


def test_a_snapshot_under_the_name_of_another_step_is_refused(record: Path) -> None:
    snapshots = record / "snapshots"
    shutil.copy(snapshots / "step-00000032.safetensors", snapshots / "step-00000024.safetensors")
    with pytest.raises(TrajectoryError, match="was taken at step 32"):
        Trajectory.open(record)
