import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk
from typer.main import get_command
from typer.testing import CliRunner

import hf_prune
from hf_prune import TrajectoryCallback
from hf_prune._core.config import ScoringConfig, SelectionConfig
from hf_prune.cli import app
from hf_prune.publish.replay import Record
from hf_prune.selection import prune
from hf_prune.selection.method import METHODS
from tests.toys import arguments, images, train, vit

COMMANDS = (
    "demo",
    "diagnose",
    "estimate",
    "gather",
    "inspect",
    "score",
    "prune",
    "verify",
    "report",
    "push",
    "replay",
)


def run(*words: object, code: int = 0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


def run_json(*words: object) -> dict:
    lines = run(*words, "--json").stdout.splitlines()
    assert len(lines) == 1, lines
    return json.loads(lines[0])


def said(*words: object, code: int = 1) -> str:
    """What is said of an error: one sentence, no traceback, nothing on stdout."""
    result = run(*words, code=code)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if code == 1:
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A recorded run of a tiny ViT: trajectory, model, train and dev."""
    path = tmp_path_factory.mktemp("run")
    rows = images(32)
    trainer = train(
        vit(), rows, path / "out", [TrajectoryCallback(path / "trajectory", row_statistics=True)], num_train_epochs=2
    )
    trainer.model.save_pretrained(path / "model")
    rows.save_to_disk(str(path / "train"))
    images(16, seed=1).save_to_disk(str(path / "dev"))
    return path


@pytest.fixture(scope="module")
def scored_dir(run_dir) -> Path:
    out = run_dir / "scored"
    values = run_json(
        "score",
        run_dir / "train",
        run_dir / "trajectory",
        out,
        "--model",
        run_dir / "model",
        "--eval-dataset",
        run_dir / "dev",
        "--directions",
        8,
    )
    assert values["rows"] == 32
    assert values["scoring"]["directions"] == 8
    return out


@pytest.fixture(scope="module")
def pruned_dir(run_dir, scored_dir) -> Path:
    out = run_dir / "pruned"
    assert run_json("prune", scored_dir, out, "--keep", 0.5)["rows"] == 16
    return out


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from hf_prune.cli import app; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_has_help():
    text = run("--help").stdout
    for name in COMMANDS:
        assert name in text
        assert "Usage" in run(name, "--help").stdout


def options_of(command: str) -> set[str]:
    return {option.name for option in get_command(app).commands[command].params}


def test_every_option_of_prune_and_add_influence_is_one_of_the_command():
    assert set(SelectionConfig(keep=0.5).to_dict()) <= options_of("prune")
    assert set(ScoringConfig().arguments()) <= options_of("score")


def test_help_names_every_method():
    shown = next(option.help for option in get_command(app).commands["prune"].params if option.name == "method")
    assert set(METHODS) <= set(re.findall(r"\w+", shown))


def test_version_is_the_packages():
    assert run("--version").stdout.strip() == f"hf-prune {hf_prune.__version__}"


@pytest.mark.parametrize(
    "words",
    [
        ["prunes"],
        ["prune"],
        ["inspect"],
        ["prune", "a", "b", "--keep", "half"],
        ["prune", "a", "b", "--buckets", "many"],
        ["demo", "--seeds", "0"],
        ["verify", "a", "b"],
    ],
)
def test_wrong_usage_ends_with_2(words):
    assert "Usage" in said(*words, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nowhere"], "no trajectory in nowhere"),
        (["prune", "nowhere", "out", "--keep", "0.5"], "no directory nowhere"),
        (["report", "nowhere"], "no directory nowhere"),
        (["push", "nowhere", "me/toy", "--source", "nowhere"], "no directory nowhere"),
        (["replay", "../nowhere"], "no directory ../nowhere"),
        (["estimate", "--model", "../nowhere", "--rows", "9"], "no directory ../nowhere"),
        (["demo", "--task", "sound"], "no task 'sound'"),
    ],
)
def test_our_errors_end_with_1_and_a_sentence(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = run(*words, code=1)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("out").exists()


LIGHT = [
    (["inspect", "nosuch"], "no trajectory in nosuch"),
    (["score", "nosuch", "nosuch", "out", "--model", "m"], "no directory nosuch"),
    (["score", ".", "nosuch", "out", "--model", "m"], "no trajectory in nosuch"),
    (["score", ".", "nosuch", "out", "--model", "m", "--space", "moon"], "--space must be one of outputs, parameters"),
    (["prune", "me/rows", "out", "--keep", "1.5"], "--keep 1.5 is not in (0, 1]"),
    (["verify", ".", "nosuch", "--factory", "a:b", "--eval-dataset", "."], "no directory nosuch"),
    (["verify", ".", ".", "--factory", "a", "--eval-dataset", "."], "not a function's name"),
    (["diagnose", ".", "nosuch", "--model", "m", "--eval-dataset", "."], "no trajectory in nosuch"),
    (["attribute", "nosuch", "--dataset", ".", "--model", "m", "--query", "a"], "no trajectory in nosuch"),
    (["report", "nosuch"], "no directory nosuch"),
    (["push", "nosuch", "me/toy", "--source", "."], "no directory nosuch"),
    (["replay", "nosuch"], "no directory nosuch"),
]


def test_what_is_not_there_is_said_before_anything_heavy_is_loaded():
    code = (
        "import json, sys\nfrom hf_prune.cli import app\nfrom typer.testing import CliRunner\n"
        "said = [CliRunner().invoke(app, words).stderr for words in json.loads(sys.argv[1])]\n"
        "print(json.dumps([said, sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))]))"
    )
    words = json.dumps([words for words, _ in LIGHT])
    done = subprocess.run([sys.executable, "-c", code, words], capture_output=True, text=True, timeout=300, check=True)
    said, heavy = json.loads(done.stdout)
    assert heavy == []
    for one, (_, message) in zip(said, LIGHT, strict=True):
        assert message in one


def test_a_record_that_is_not_there_is_refused_in_the_librarys_words():
    with pytest.raises(hf_prune.TrajectoryError) as error:
        hf_prune.Trajectory.open("nosuch")
    assert said("inspect", "nosuch") == f"Error: {error.value}\n"


def test_without_matplotlib_what_draws_says_what_to_install(run_dir, pruned_dir, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hf_prune.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    sentence = "Error: Reports and plots need matplotlib: pip install 'hf-prune[report]'.\n"
    assert said("report", pruned_dir, "--out", tmp_path / "page.html") == sentence
    asked = ("attribute", run_dir / "trajectory", "--dataset", run_dir / "train", "--model", run_dir / "model")
    assert said(*asked, "--query", "a", "--report", tmp_path / "page.html") == sentence  # before the work
    run_json("inspect", run_dir / "trajectory")


def test_completion_offers_commands_and_options():
    asked = {"_TYPER_COMPLETE_TESTING": "1", "_HF_PRUNE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    for line, place, expected in (("hf-prune pr", "1", "prune"), ("hf-prune score --sco", "2", "--scores")):
        env = os.environ | asked | {"COMP_WORDS": line, "COMP_CWORD": place}
        command = [sys.executable, "-c", "import sys; sys.argv[0] = 'hf-prune'; from hf_prune.cli import main; main()"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
        assert expected in done.stdout.split()


def test_debug_shows_where_an_error_comes_from():
    result = CliRunner().invoke(app, ["--debug", "inspect", "nowhere"])
    assert isinstance(result.exception, hf_prune.TrajectoryError)


def test_score_writes_what_add_influence_makes(run_dir, scored_dir):
    scored = load_from_disk(str(scored_dir))
    assert {"influence", "influence_norm", "influence_eval_loss"} <= set(scored.column_names)
    model = type(vit()).from_pretrained(run_dir / "model")
    again = hf_prune.add_influence(
        load_from_disk(str(run_dir / "train")),
        run_dir / "trajectory",
        model=model,
        directions=8,
        eval_dataset=load_from_disk(str(run_dir / "dev")),
    )
    np.testing.assert_allclose(scored["influence_norm"], again["influence_norm"], rtol=1e-5)


def test_prune_keeps_the_rows_that_the_library_keeps(run_dir, scored_dir, pruned_dir):
    rows = load_from_disk(str(scored_dir))
    expected = prune(rows, keep=0.5)
    assert load_from_disk(str(pruned_dir))["pixel_values"] == expected["pixel_values"]
    record = Record.open(str(pruned_dir))
    assert record.keep_indices.tolist() == expected.selection.keep_indices.tolist()
    # the columns' origin has survived two round trips through disk
    assert record.provenance["training"]["model"]["class"] == "ViTForImageClassification"
    assert record.provenance["influence"]["directions"] == 8


def test_prune_saves_the_raw_rows_where_they_are_named(run_dir, scored_dir, pruned_dir, tmp_path):
    rows = load_from_disk(str(run_dir / "train"))
    more = rows.select([*range(31, -1, -1)]).add_column("place", [*range(31, -1, -1)])
    extra = images(1, seed=9).add_column("place", [32])
    concatenate_datasets([more, extra.cast(more.features)]).save_to_disk(str(tmp_path / "raw"))
    words = ("prune", scored_dir, tmp_path / "half", "--keep", "0.5", "--raw", tmp_path / "raw")
    assert "pass --unseen drop or --unseen keep" in said(*words)
    assert run_json(*words, "--unseen", "drop")["rows"] == 16
    loaded = load_from_disk(str(tmp_path / "half"))
    assert loaded.column_names == ["pixel_values", "labels", "place"]
    assert sorted(loaded["place"]) == Record.open(str(pruned_dir)).keep_indices.tolist()
    plan = run_json("push", tmp_path / "half", "me/toy", "--source", tmp_path / "raw", "--dry-run")
    assert plan["provenance"] | {"created": None} == Record.open(str(tmp_path / "half")).provenance | {"created": None}
    assert "--unseen is about raw rows" in said("prune", scored_dir, tmp_path / "no", "--unseen", "drop")
    run_json("prune", scored_dir, tmp_path / "scores", "--keep", "0.5", "--include-scores")
    assert "influence_norm" in load_from_disk(str(tmp_path / "scores")).column_names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "neither --keep nor --epsilon: pass one of them, --keep 0.5 for half"),
        (["--keep", "1.5"], "--keep 1.5 is not in (0, 1]"),
        (["--keep", "99"], "99"),
        (["--keep", "0.5", "--column", "foo"], "foo"),
        (["--keep", "0.5", "--method", "best"], "--method best is not known"),
        (["--keep", "0.5", "--method", "el2n"], "make it with `hf-prune score --scores`"),
        (["--keep", "0.5", "--method", "iclr2023"], "make it with `hf-prune score --scores --last-layer`"),
    ],
)
def test_a_wrong_argument_of_prune_is_said_and_writes_nothing(tmp_path, scored_dir, options, message):
    assert message in said("prune", scored_dir, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(scored_dir, pruned_dir, run_dir):
    before = sorted(pruned_dir.rglob("*"))
    assert "already exists" in said("prune", scored_dir, pruned_dir, "--keep", "0.3")
    words = ("score", run_dir / "train", run_dir / "trajectory", pruned_dir, "--model", run_dir / "model")
    assert "already exists" in said(*words)
    assert sorted(pruned_dir.rglob("*")) == before


def test_a_dataset_dict_is_refused(tmp_path):
    from datasets import DatasetDict

    DatasetDict(train=images(4)).save_to_disk(str(tmp_path / "dict"))
    assert "DatasetDict" in said("prune", tmp_path / "dict", tmp_path / "out", "--keep", "0.5")


def test_inspect_sums_the_run_up(run_dir):
    values = run_json("inspect", run_dir / "trajectory")
    assert values["steps"]["recorded"] == 8
    assert values["visits_per_row"] == {"2": 32}
    assert "ViTForImageClassification" in run("inspect", run_dir / "trajectory").stdout


def test_score_adds_the_columns_of_other_methods_and_diagnose_says_by_its_code_whether_to_trust(run_dir, tmp_path):
    model, dev = ("--model", run_dir / "model"), ("--eval-dataset", run_dir / "dev")
    out = tmp_path / "scored"
    run_json("score", run_dir / "train", run_dir / "trajectory", out, *model, *dev, "--directions", 8, "--scores")
    rows = load_from_disk(str(out))
    assert {"grand", "aum", "el2n", "forgetting", "less", "rds", "influence_norm"} <= set(rows.column_names)
    assert "--last-layer goes with --scores" in said("score", ".", ".", tmp_path / "no", *model, "--last-layer")

    asked = ["diagnose", out, run_dir / "trajectory", *model, *dev, "--group", "0.2", "--out", tmp_path / "found.json"]
    told = CliRunner().invoke(app, [*map(str, asked)])
    trusted = json.loads((tmp_path / "found.json").read_text())["derived"]["trusted"]
    assert told.exit_code == (0 if trusted else 3)


def test_an_untrusted_run_ends_diagnose_with_3(run_dir, monkeypatch):
    for limit in ("LOW", "HIGH"):  # which no run reaches
        monkeypatch.setattr(f"hf_prune.diagnosis.diagnosis.{limit}", 1.1)
    asked = ["diagnose", run_dir / "train", run_dir / "trajectory", "--model", run_dir / "model"]
    words = [*asked, "--eval-dataset", run_dir / "dev", "--group", "0.2"]
    assert "Do not trust" in run(*words, code=3).stdout


def test_estimate_is_the_librarys(run_dir):
    from dataclasses import asdict

    values = run_json("estimate", "--model", run_dir / "model", "--rows", 32, "--epochs", 2)
    args = arguments(run_dir / "out", num_train_epochs=2)
    assert values == asdict(hf_prune.estimate(vit(), args, 32))
    assert "KiB" in run("estimate", "--model", run_dir / "model", "--rows", 32).stdout


FACTORY = """
from transformers import Trainer
from tests.toys import arguments, vit

def make(rows, seed):
    return Trainer(vit(), arguments("scratch", num_train_epochs=1, seed=seed), train_dataset=rows)
"""


def test_verify_takes_the_users_factory_and_report_shows_it(run_dir, scored_dir, pruned_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_factory.py").write_text(FACTORY)
    words = ("verify", scored_dir, pruned_dir, "--eval-dataset", run_dir / "dev", "--seeds", 1)
    values = run_json(*words, "--factory", "my_factory:make", "--out", "verification.json")
    assert json.loads(Path("verification.json").read_text()) == values
    assert [values[arm]["rows"] for arm in ("full", "pruned", "random")] == [32, 16, 16]
    certificate = Record.open(str(pruned_dir)).provenance["selection"]["certificate"]
    assert values["predicted_loss_change"] == certificate["predicted_eval_loss_change"]
    assert "no function" in said(*words, "--factory", "my_factory:other")
    assert "module:function" in said(*words, "--factory", "my_factory")

    plan = run_json(
        *("push", pruned_dir, "me/toy", "--source", scored_dir, "--dry-run", "--verification", "verification.json")
    )
    assert plan["provenance"]["observed"] == hf_prune.Verification.load("verification.json").observed()
    others = ("push", pruned_dir, "me/toy", "--source", scored_dir, "--dry-run", "--verification")
    Path("other.json").write_text(json.dumps(values | {"pruned": values["pruned"] | {"rows": 9}}))
    assert "pass the verification of this dataset" in said(*others, "other.json")

    run("report", pruned_dir, "--source", scored_dir, "--verification", "verification.json", "--out", "page.html")
    page = Path("page.html").read_text()
    assert "Accuracy against the pruned share" in page
    assert "Most redundant rows" in page
    Path("verification.json").write_text("{}")
    assert "verify again" in said("report", pruned_dir, "--verification", "verification.json")


def test_report_of_a_directory_alone_shows_the_kept_rows(pruned_dir, tmp_path):
    assert run_json("report", pruned_dir, "--out", tmp_path / "page.html")["bytes"] > 10_000
    page = (tmp_path / "page.html").read_text()
    assert "Kept 16 of 32 rows" in page
    assert "accuracy" not in page.lower()


def test_replay_makes_the_same_rows_and_refuses_another_source(run_dir, scored_dir, pruned_dir, tmp_path):
    assert run_json("replay", pruned_dir, "--source", scored_dir, "--out", tmp_path / "again")["same"]
    assert load_from_disk(str(tmp_path / "again"))["labels"] == load_from_disk(str(pruned_dir))["labels"]
    rows: Dataset = load_from_disk(str(run_dir / "train"))
    concatenate_datasets([rows.select([1, 0]), rows.select(range(2, 32))]).save_to_disk(str(tmp_path / "other"))
    result = run("replay", pruned_dir, "--source", tmp_path / "other", code=1)
    assert "not the one that was pruned" in result.stderr


def test_a_push_from_disk_carries_the_same_provenance(scored_dir, pruned_dir):
    plan = run_json("push", pruned_dir, "me/toy", "--source", scored_dir, "--dry-run")
    saved = Record.open(str(pruned_dir)).provenance
    assert plan["provenance"] | {"created": None} == saved | {"created": None}
    assert "hf_prune/provenance.json" in plan["files"]
    assert "---" in run("push", pruned_dir, "me/toy", "--source", scored_dir, "--dry-run").stdout
