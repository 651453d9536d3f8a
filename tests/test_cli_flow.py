"""From a recorded run to a pushed dataset by `hf-prune` alone, each command in a process, with a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import Hub

ROOT = Path(__file__).parents[1]
TRAINING = """
import sys
from transformers import Trainer

from hf_prune import TrajectoryCallback
from tests.toys import arguments, images, train, vit


def make_trainer(train_dataset, seed):
    return Trainer(vit(), arguments("scratch", num_train_epochs=1, seed=seed), train_dataset=train_dataset)


if __name__ == "__main__":
    rows = images(32)
    trainer = train(vit(), rows, "out", [TrajectoryCallback("trajectory")], num_train_epochs=2)
    trainer.model.save_pretrained("model")
    images(16, seed=1).save_to_disk("dev")
    images(16, seed=2).save_to_disk("test")
    rows.push_to_hub("alice/rows")
    images(8, seed=3).push_to_hub("alice/languages", "en")
    rows.push_to_hub("alice/languages", "fr", split="part")
"""

LINES = """
import shlex
import sys

from typer.testing import CliRunner

from hf_prune.cli import app

for line in sys.argv[1:]:
    done = CliRunner().invoke(app, shlex.split(line))
    print(done.exit_code, (done.stderr if done.exit_code else done.stdout).splitlines()[-1])
"""
"""Several commands in one process: for each its exit code and the last line that it said."""


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("flow")
    (path / "train.py").write_text(TRAINING)
    with Hub() as hub:
        environment = hub.environment(path / "home", PYTHONPATH=str(ROOT))

        def run(*command: object) -> str:
            words = [sys.executable, *map(str, command)]
            done = subprocess.run(
                words, cwd=path, env=environment, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        run("train.py")

        def prune(*words: object) -> str:
            return run("-c", "from hf_prune.cli import main; main()", *words)

        yield hub, path, prune, lambda *lines: run("-c", LINES, *lines).splitlines()


def test_score_prune_verify_report_and_push_need_no_python(flow):
    hub, path, prune, _ = flow
    rows = f"alice/rows@{hub.repo('alice/rows').at('main').sha}:train"
    scoring = ("--model", "model", "--eval-dataset", "dev", "--directions", 8)
    assert "Scored 32 rows" in prune("score", rows, "trajectory", "scored", *scoring)
    assert "Kept 16 of 32 rows" in prune("prune", "scored", "half", "--keep", 0.5, "--raw", rows)
    factory = ("--factory", "train:make_trainer", "--eval-dataset", "test", "--seeds", 1)
    assert "Gap" in prune("verify", rows, "half", *factory, "--out", "verification.json")
    measured = json.loads((path / "verification.json").read_text())["estimates"]["gap"]["mean"]
    assert "Wrote report.html" in prune("report", "half", "--source", "scored", "--verification", "verification.json")
    assert "Accuracy against the pruned share" in (path / "report.html").read_text()
    prune("push", "half", "alice/half", "--source", rows, "--verification", "verification.json")
    provenance = json.loads(hub.read("alice/half", "hf_prune/provenance.json"))
    assert provenance["observed"]["gap"] == measured
    assert provenance["source"]["id"] == "alice/rows"
    assert "Wrote again.html" in prune("report", "alice/half", "--source", rows, "--out", "again.html")  # replays it
    assert "Retrained once on these rows" in (path / "again.html").read_text()  # as its provenance says


def test_a_config_of_a_dataset_on_the_hub_is_named_before_its_split(flow):
    hub, _, _, lines = flow
    commit = hub.repo("alice/languages").at("main").sha
    score = "trajectory scored-fr --model model --eval-dataset dev --directions 8"
    which = "Error: alice/languages has the configs en, fr: name one of them, such as alice/languages:en/train."
    found = lines(
        f"score alice/languages {score}",
        f"score alice/languages:de/ {score}",
        f"score alice/languages@{commit}:fr/ {score}",
        "prune scored-fr third --keep 0.25 --raw alice/languages:fr/part",
        f"push third alice/parts --source alice/languages:fr/part --config-name third "
        f"--source-id alice/languages@{commit}",
        "replay alice/parts@main:third/",  # from the config and the split that the provenance names
        "replay alice/parts:third/train",
        "replay alice/parts",
        "report alice/parts:third/part --source alice/languages:fr/ --out third.html",
    )
    assert [line[0] for line in found] == list("110000110"), found
    assert found[0] == found[1] == f"1 {which}"
    assert "Scored 32 rows" in found[2]
    source = json.loads(hub.read("alice/parts", "hf_prune/third/provenance.json"))["source"]
    assert (source["id"], source["config_name"], source["split"]) == ("alice/languages", "fr", "part")
    assert found[5] == "0 The same 8 rows as published."
    assert found[6].endswith("alice/parts:third/train is not what was pruned: that is the split part.")
    assert "alice/parts was not published by hf_prune: it has no hf_prune/provenance.json" in found[7]
