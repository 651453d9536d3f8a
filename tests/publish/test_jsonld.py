"""provenance.jsonld: JSON-LD that parses, PROV-O triples that say what happened, Croissant that is accepted."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import mlcroissant
import pytest
import rdflib

from hf_prune.publish import files, provenance
from hf_prune.selection import prune
from tests.publish import samples

PROV = rdflib.Namespace("http://www.w3.org/ns/prov#")
SCHEMA = rdflib.Namespace("https://schema.org/")
URL = "https://huggingface.co/datasets/me/half"


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    pruned = prune(samples.scored(run=samples.manifest()), keep=0.5)
    known = provenance.build(pruned, source_id="org/reviews@" + "a" * 40, license="mit")
    return files.make(pruned, known, repo_id="me/half", data_dir="data")


@pytest.fixture(scope="module")
def document(made) -> dict[str, Any]:
    return dict(json.loads(made["hf_prune/provenance.jsonld"]))


@pytest.fixture(scope="module")
def graph(document) -> rdflib.Graph:
    return rdflib.Graph().parse(data=json.dumps(document), format="json-ld", publicID=URL + "/")


def test_dataset_was_derived_from_its_source_at_its_commit(graph):
    source = rdflib.URIRef(f"https://huggingface.co/datasets/org/reviews/tree/{'a' * 40}")
    assert graph.value(rdflib.URIRef(URL), PROV.wasDerivedFrom) == source
    assert (source, rdflib.RDF.type, PROV.Entity) in graph


def test_dataset_was_generated_by_pruning_that_used_the_source_and_the_run(graph):
    activity = graph.value(rdflib.URIRef(URL), PROV.wasGeneratedBy)
    assert (activity, rdflib.RDF.type, PROV.Activity) in graph
    assert graph.value(activity, PROV.used) == graph.value(rdflib.URIRef(URL), PROV.wasDerivedFrom)
    assert graph.value(activity, PROV.endedAtTime) is not None
    run = graph.value(activity, PROV.wasInformedBy)
    assert str(run) == f"urn:sha256:{'d' * 64}"
    assert str(graph.value(run, PROV.used)) == "https://huggingface.co/google-bert/bert-base-uncased"
    agent = graph.value(rdflib.URIRef(URL), PROV.wasAttributedTo)
    assert (agent, rdflib.RDF.type, PROV.SoftwareAgent) in graph


def test_croissant_part_is_accepted(document):
    metadata = mlcroissant.Dataset(jsonld=copy.deepcopy(document)).metadata
    assert not metadata.issues.errors
    assert metadata.conforms_to == ["http://mlcommons.org/croissant/1.1"]
    rows = next(record for record in metadata.record_sets if record.id == "default")
    assert [field.name for field in rows.fields] == ["text", "label", "x", "year", *samples.SCORES]


def test_croissant_of_a_directory_is_accepted():
    pruned = prune(samples.scored(), keep=0.5)
    made = files.make(pruned, provenance.build(pruned))
    document = json.loads(made["hf_prune/provenance.jsonld"])
    assert not mlcroissant.Dataset(jsonld=document).metadata.issues.errors


def test_checksums_are_of_the_files_beside_it(made, document):
    digests = {item["@id"]: item["sha256"] for item in document["distribution"] if "sha256" in item}
    for name in ("kept_ids.parquet", "provenance.json"):
        assert digests[name] == hashlib.sha256(made[f"hf_prune/{name}"]).hexdigest()
