"""The filled examples in model_cards/ are what the templates make of the example provenance."""

from __future__ import annotations

import json

import jsonschema
from huggingface_hub import DatasetCard, ModelCard

from hf_prune.publish import examples, templates
from hf_prune.selection import prune
from tests.publish import samples


def test_examples_are_what_the_templates_make_today():
    document = json.loads(templates.read(examples.PROVENANCE))
    jsonschema.Draft202012Validator(templates.schema()).validate(document)
    for name, text in examples.render(document).items():
        assert templates.read(name) == text, f"{name} is out of date: write it again with hf_prune.publish.examples"


def test_examples_are_filled():
    assert DatasetCard(templates.read(examples.DATASET_CARD)).data.tags
    results = ModelCard(templates.read(examples.MODEL_CARD)).data.eval_results
    assert len(results) == 3
    document = json.loads(templates.read(examples.PROVENANCE))
    assert document["training"] is not None
    assert document["observed"]["seeds"] >= 3


def test_examples_can_be_written_again(tmp_path):
    examples.write(prune(samples.scored(), keep=0.5), tmp_path, observed=samples.OBSERVED)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "provenance.example.json",
        "pruned_dataset.example.md",
        "pruned_model.example.md",
    ]
