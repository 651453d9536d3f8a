import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from hf_prune.demo import Sizes, make_task, run_demo
from hf_prune.publish.replay import Record, replay
from hf_prune.trajectory import Trajectory

RATES = ("0.5", "0.7", "0.9")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """`hf-prune demo --quick --json`, in a process of its own and with progress bars."""
    out = tmp_path_factory.mktemp("demo") / "out"
    environment = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name}
    words = ["demo", "--quick", "--seeds", "1", "--json", "--out", str(out)]
    code = "from hf_prune.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result, out


def test_stdout_holds_one_line_of_json_with_the_agreed_keys(done):
    lines = done[0].stdout.splitlines()
    assert len(lines) == 1
    values = json.loads(lines[0])
    assert set(values) == {"accuracy", "predicted_gap", "observed_gap", "seconds"}
    assert set(values["accuracy"]) == {"full", "pruned", "random"}
    assert tuple(values["accuracy"]["pruned"]) == tuple(values["accuracy"]["random"]) == RATES
    assert set(values["seconds"]) == {"train", "record_overhead", "score", "select"}
    assert isinstance(values["predicted_gap"], float)
    assert isinstance(values["observed_gap"], float)


def test_table_and_progress_go_to_stderr(done):
    shown = done[0].stderr
    for bar in ("Training", "Scoring rows", "Pruning", "Retraining"):
        assert bar in shown
    assert "rows pruned" in shown


def test_report_is_there_and_names_every_rate(done):
    page = (done[1] / "report.html").read_text()
    for rate in ("50%", "70%", "90%"):
        assert rate in page
    assert "data:image/png" in page


def test_pruned_dataset_is_saved_with_proof_and_observed_gap(done):
    values = json.loads(done[0].stdout)
    saved = done[1] / "pruned-0.5"
    task = make_task("digits", Sizes(train=120, dev=30, test=30, epochs=2, directions=8))
    assert replay(str(saved), source=task.train)["label"] == load_from_disk(str(saved))["label"]
    document = Record.open(str(saved)).provenance
    assert document["result"]["rows"] == 60
    assert document["observed"]["pruned"] == values["accuracy"]["pruned"]["0.5"]
    certificate = document["selection"]["certificate"]
    assert certificate["predicted_eval_loss_change"] == values["predicted_gap"]
    assert Trajectory.open(done[1] / "trajectory").digest == document["training"]["trajectory_digest"]


def test_an_earlier_demo_is_replaced_and_nothing_else(done, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    task = make_task("digits", Sizes(train=120, dev=4, test=4, epochs=1, directions=4))
    with pytest.raises(ValueError, match="holds no earlier demo"):
        run_demo(task, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (done[1] / "mine.txt").write_text("keep me")
    result = run_demo(task, done[1], seeds=1, rates=(0.5,))
    assert len(load_from_disk(str(done[1] / "pruned-0.5"))) == 60
    assert (done[1] / "mine.txt").exists()
    assert not (done[1] / "trainer").exists()
    assert set(result.test) == {0.5}


def test_the_main_rate_may_not_be_left_out(tmp_path):
    task = make_task("digits", Sizes(train=12, dev=4, test=4, epochs=1, directions=4))
    with pytest.raises(ValueError, match=r"lacks 0\.5"):
        run_demo(task, tmp_path, rates=(0.3,))
