"""The filled examples in model_cards/ are what the templates make of the example provenance."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
from huggingface_hub import DatasetCard, ModelCard

from hf_prune.publish import examples, files, provenance, templates
from hf_prune.selection import prune
from tests.publish import samples


def test_examples_are_what_the_templates_make_today():
    document = json.loads(templates.read(examples.PROVENANCE))
    jsonschema.Draft202012Validator(templates.schema()).validate(document)
    for name, text in examples.render(document).items():
        assert templates.read(name) == text, f"{name} is out of date: write it again with hf_prune.publish.examples"


def test_examples_are_filled():
    data = DatasetCard(templates.read(examples.DATASET_CARD)).data
    assert data.task_categories == ["image-classification"]
    assert data.size_categories == "n<1K"
    model = ModelCard(templates.read(examples.MODEL_CARD)).data
    assert model.pipeline_tag == "image-classification"
    assert model.eval_results is None  # nothing on the Hub was measured on
    document = json.loads(templates.read(examples.PROVENANCE))
    assert document["training"] is not None
    assert document["observed"]["seeds"] >= 3


def test_examples_have_all_that_this_version_writes():
    document = json.loads(templates.read(examples.PROVENANCE))
    fresh = provenance.build(prune(samples.scored(run=samples.manifest()), keep=0.5), observed=samples.OBSERVED)
    for part in ((), ("selection", "certificate"), ("influence",), ("observed",), ("result",)):
        old, new = document, fresh
        for name in part:
            old, new = old[name], new[name]
        assert old.keys() == new.keys(), part


def test_examples_are_made_by_a_command(tmp_path):
    pruned = prune(samples.scored(run=samples.manifest()), keep=0.5)
    pruned.save_to_disk(tmp_path / "pruned")
    files.write(pruned, tmp_path / "pruned", observed=samples.OBSERVED)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "hf_prune.publish.examples", str(tmp_path / "pruned"), str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "provenance.example.json",
        "pruned_dataset.example.md",
        "pruned_model.example.md",
    ]
