"""`hf-prune attribute` and `hf-prune inspect --spikes`: as their functions in Python, in tables and in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from peft import AutoPeftModelForCausalLM

from hf_prune import Attribution, attribute
from tests.attribution.facts import PLANTED, Taught, fact, teach, tokenizer
from tests.attribution.test_result import found
from tests.selection.scored import scored
from tests.test_cli import run, run_json, said
from tests.trajectory.test_spikes import BAD, planted, spikes

QUERIES = [fact(*PLANTED, 0), fact(*PLANTED, 1)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """A run with LoRA, its adapter and its tokenizer on disk."""
    pytest.importorskip("trl", reason="trl is an optional integration")
    path = tmp_path_factory.mktemp("taught")
    taught = teach(path, num_train_epochs=2, base_directory=path / "base")
    taught.trainer.model.save_pretrained(path / "model")
    tokenizer().save_pretrained(path / "model")
    taught.trainer.train_dataset.save_to_disk(str(path / "train"))
    return taught


@pytest.fixture(scope="module")
def asked(taught: Taught) -> list[Any]:
    path = taught.path.parent
    return ["attribute", taught.path, "--dataset", path / "train", "--model", path / "model", "--engine", "projected"]


def test_queries_of_a_file_are_those_of_python(taught: Taught, asked: list[Any], tmp_path: Path):
    file, output = tmp_path / "queries.jsonl", tmp_path / "found.safetensors"
    file.write_text("\n".join(map(json.dumps, QUERIES)) + "\n")
    values = run_json(*asked, "--queries", file, "--k", 3, "--output", output)
    true = attribute(taught.path, QUERIES, k=3, engine="projected", **taught.asking)
    assert values["queries"] == 2
    assert values["rows"] == len(taught.trainer.train_dataset)
    assert [(line["query"], line["row"]) for line in values["found"]] == [
        (line["query"], line["row"]) for line in true.to_dataset()
    ]
    np.testing.assert_allclose(Attribution.load(output).influence, true.influence, rtol=1e-3, atol=1e-6)


def test_a_prompt_and_what_it_said_are_a_query_and_a_table_and_a_page_show_the_rows(asked: list[Any], tmp_path: Path):
    query, page = QUERIES[0], tmp_path / "page.html"
    words = ["--prompt", query["prompt"], "--query", query["completion"]]
    shown = run(*asked, *words, "--k", 2, "--tokens", "row", "--report", page).stdout
    assert query["prompt"] in shown
    assert f"it is {PLANTED[2]}" in " ".join(shown.split())
    assert "Why did it say that?" in page.read_text()
    assert f"<mark>{PLANTED[2]}</mark>" in page.read_text()


def test_an_attribution_is_part_of_a_report_on_pruned_rows(tmp_path: Path):
    scored(40).save_to_disk(str(tmp_path / "scored"))
    run("prune", tmp_path / "scored", tmp_path / "pruned", "--keep", 0.5)
    found().save(tmp_path / "found.safetensors")
    page = tmp_path / "report.html"
    run("report", tmp_path / "pruned", "--attribution", tmp_path / "found.safetensors", "--out", page)
    assert "Why did it say that?" in page.read_text()
    assert "Certificate" in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pass either --query or --queries"),
        (["--query", "it is", "--queries", "nowhere"], "pass either --query or --queries"),
        (["--queries", "nowhere"], "There is no nowhere"),
        (["--queries", "nowhere", "--prompt", "it"], "--prompt goes with --query"),
    ],
)
def test_wrong_questions_are_refused_in_a_sentence(asked: list[Any], words: list[str], message: str):
    assert message in said(*asked, *words)


def test_a_file_that_is_not_json_lines_is_refused(asked: list[Any], tmp_path: Path):
    (tmp_path / "queries.txt").write_text("why\n")
    assert "queries.txt is not JSON" in said(*asked, "--queries", tmp_path / "queries.txt")


def test_the_adapter_that_is_loaded_is_the_one_that_was_saved(taught: Taught):
    assert load_from_disk(str(taught.path.parent / "train")).column_names
    loaded = AutoPeftModelForCausalLM.from_pretrained(taught.path.parent / "model", is_trainable=True)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in taught.trainer.model.named_parameters() if p.requires_grad
    }


def test_inspect_names_the_row_behind_a_spike_in_words(tmp_path: Path):
    rows = planted().add_column("text", [f"number {i}" for i in range(96)])
    spikes(tmp_path, rows=rows)
    rows.save_to_disk(str(tmp_path / "rows"))
    shown = " ".join(run("inspect", tmp_path / "t", "--spikes", "--dataset", tmp_path / "rows").stdout.split())
    assert f"row {BAD}: loss" in shown
    assert f"number {BAD}" in shown.replace(" │ │ │ │ │ │", "")  # a cell may go on in another line
    values = run_json("inspect", tmp_path / "t", "--spikes", "--dataset", tmp_path / "rows")
    assert values["spikes"][0]["rows"][0]["id"] == BAD
    assert values["texts"][str(BAD)].startswith(f"number {BAD}")


def test_inspect_says_what_was_not_recorded_and_that_nothing_stands_out(tmp_path: Path):
    spikes(tmp_path, statistics=False, max_steps=5)
    shown = run("inspect", tmp_path / "t", "--spikes").stdout
    assert "No step stands out" in shown
    assert "too few" in shown
    other = Dataset.from_dict({"x": [[1.0] * 4], "labels": [0.0]})
    other.save_to_disk(str(tmp_path / "other"))
    assert "rows and the recorded one had" in said(
        "inspect", tmp_path / "t", "--spikes", "--dataset", tmp_path / "other"
    )
    assert "--dataset goes with --spikes" in said("inspect", tmp_path / "t", "--dataset", tmp_path / "other")
