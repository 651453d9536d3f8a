"""provenance.json: valid, complete, says what it does not know, and holds no secret."""

from __future__ import annotations

import dataclasses
import getpass
import json
import socket
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from datasets import Dataset, DatasetInfo

from hf_prune._core.config import ScoringConfig, SelectionConfig
from hf_prune._core.digest import content_digest
from hf_prune._core.records import Observed, ScoringRecord
from hf_prune.publish import files, provenance, scrub, source, templates
from hf_prune.selection import Certificate, prune
from hf_prune.selection.harm import Harm
from tests.publish import samples

VALIDATOR = jsonschema.Draft202012Validator(templates.schema())
TOKEN = "hf_plantedPlantedPlantedPlantedPlanted"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def everything(directory: Path, pruned: Any, **known: Any) -> str:
    """All that would be published beside the rows."""
    files.write(pruned, directory, **known)
    return "\n".join(path.read_text("latin-1") for path in sorted(directory.rglob("*")) if path.is_file())


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_schema_is_a_schema_and_strict():
    jsonschema.Draft202012Validator.check_schema(templates.schema())
    valid = provenance.build(prune(samples.scored(), keep=0.5))
    for wrong in (
        valid | {"extra": 1},
        valid | {"schema_version": 2},
        {**valid, "source": valid["source"] | {"x": 1}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate(wrong)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("selection.arguments", names(SelectionConfig)),
        ("selection.certificate", names(Certificate)),
        ("selection.certificate.harm", names(Harm)),
        ("influence", (names(ScoringConfig) | names(ScoringRecord)) - {"config", "run"}),
        ("observed", names(Observed)),
    ],
)
def test_schema_has_the_fields_of_the_dataclasses(path, fields):
    part = templates.schema()
    for name in path.split("."):
        part = part["properties"][name]
        part = next((kind for kind in part.get("anyOf", []) if kind.get("type") == "object"), part)
    assert set(part["properties"]) == fields


def test_every_option_and_what_came_of_it_is_published():
    pruned = prune(samples.scored(run=samples.manifest()), keep=0.4, method="herding", features="x", seed=3)
    document = provenance.build(pruned)
    VALIDATOR.validate(document)
    assert (
        document["selection"]["arguments"]
        == SelectionConfig(keep=0.4, method="herding", features="x", seed=3).to_dict()
    )
    assert document["selection"]["resolved"] == pruned.selection.resolved
    assert document["influence"]["recorded_share"] == 0.5
    assert document["influence"]["held_out_curvature"] == 0.02


def test_document_is_valid_and_holds_the_run():
    pruned = prune(samples.scored(run=samples.manifest(schedule={"name": "linear", "warmup_steps": 5})), keep=0.5)
    document = provenance.build(pruned, config_name="keep-50", observed=samples.OBSERVED)
    VALIDATOR.validate(json.loads(json.dumps(document, allow_nan=False)))
    training = document["training"]
    assert training["model"]["id"] == "google-bert/bert-base-uncased"
    assert training["model"]["parameters"] == 25
    assert training["optimizer"]["groups"][0]["betas"] == [0.9, 0.999]
    assert training["schedule"] == {"name": "linear", "warmup_steps": 5}
    assert training["seeds"] == {"seed": 42, "data_seed": None}
    assert document["influence"]["directions"] == samples.DIRECTIONS
    assert document["selection"]["arguments"]["keep"] == 0.5
    assert document["selection"]["certificate"]["classes_after"] == {"neg": 15, "pos": 15}
    assert document["versions"]["datasets"]
    assert document["observed"]["gap"] == 0.005


def test_digests_are_of_the_content_without_the_scores():
    pruned = prune(samples.scored(), keep=0.5)
    document = provenance.build(pruned)
    assert document["source"]["content_digest"] == content_digest(samples.plain())
    kept = samples.plain().select(pruned.selection.keep_indices.tolist())
    assert document["result"]["content_digest"] == content_digest(kept)
    assert document["result"]["score_columns"] == list(samples.SCORES)


def test_what_is_not_known_is_null():
    document = provenance.build(prune(samples.scored(), keep=0.5))
    VALIDATOR.validate(document)
    assert document["training"] is None
    assert document["influence"] is None
    assert document["observed"] is None
    assert document["source"]["id"] is None
    assert document["source"]["license"] == {}


def test_planted_secrets_do_not_get_out(tmp_path, monkeypatch):
    home = tmp_path / "home" / "planteduser"
    (home / "data").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PLANTED_API_KEY", "plantedapikeyvalue")
    monkeypatch.setenv("USER", "planteduser")
    run = samples.manifest(
        model={"class": "Bert", "name_or_path": str(home / "model"), "token": TOKEN},
        output_dir=str(home / "run"),
        run_id=f"planteduser-{socket.gethostname()}",
        host=socket.gethostname(),
        user="planteduser",
        dataset_fingerprint=str(home),
        environment={"HF_TOKEN": TOKEN},
    )
    run["optimizer"]["groups"][0]["path"] = str(home)
    run["seeds"]["token"] = TOKEN
    samples.plain().to_json(home / "data" / "rows.jsonl")
    loaded = Dataset.from_json(str(home / "data" / "rows.jsonl"), cache_dir=str(home / "cache"))
    scored = samples.scored(loaded.cast(samples.plain().features), run=run)
    scored.info.description = str(home)
    scored.info.download_checksums = {str(home / "data" / "rows.jsonl"): {"num_bytes": 1, "checksum": None}}
    published = everything(tmp_path / "published", prune(scored, keep=0.5), observed=samples.OBSERVED)
    for planted in (str(home), "planteduser", TOKEN, "plantedapikeyvalue", str(tmp_path)):
        assert planted not in published
    assert f'"{getpass.getuser()}"' not in published
    assert socket.gethostname() not in published


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("observed.protocol", "see /home/me/notes"),
        ("observed.protocol", "~/notes"),
        ("observed.metric", TOKEN),
        ("observed.protocol", r"C:\Users\me"),
        ("observed.protocol", "file:/etc/passwd"),
        ("observed.protocol", "a secret plantedapikeyvalue"),
    ],
)
def test_paths_and_secrets_in_an_argument_are_refused_without_being_repeated(where, value, monkeypatch):
    monkeypatch.setenv("PLANTED_API_KEY", "plantedapikeyvalue")
    pruned = prune(samples.scored(), keep=0.5)
    with pytest.raises(ValueError, match=where) as refused:
        provenance.build(pruned, observed=samples.OBSERVED | {where.split(".")[1]: value})
    assert value not in str(refused.value)


def test_class_names_that_look_like_paths_are_the_datasets_own():
    scrub.check({"classes_before": {"/m/09x0r": 3}, "columns": {"~/x": "a"}}, unread=provenance.OWN_NAMES)
    with pytest.raises(ValueError, match="path"):
        scrub.check({"notes": ["/m/09x0r"]}, unread=provenance.OWN_NAMES)


def test_unknown_field_of_what_was_observed_is_refused():
    with pytest.raises(ValueError, match="no field 'acuracy'"):
        provenance.build(prune(samples.scored(), keep=0.5), observed={"metric": "accuracy", "acuracy": 1.0})
    with pytest.raises(ValueError, match="names no metric"):
        provenance.build(prune(samples.scored(), keep=0.5), observed={"gap": 1.0})


def test_not_finite_numbers_are_null():
    assert scrub.plain({"a": np.float32("nan"), "b": [float("inf"), np.int64(3)]}) == {"a": None, "b": [None, 3]}
    with pytest.raises(TypeError, match="object"):
        scrub.plain({"a": object()})


def test_local_directory_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    assert scrub.hub_id("out/checkpoint-5") is None
    assert scrub.hub_id("/srv/model") is None
    assert scrub.hub_id("../model") is None
    assert scrub.hub_id("org/model") == "org/model"
    # a source that was loaded from the Hub, or that the caller names, stays on the Hub
    assert source.find(samples.plain(), "out/checkpoint-5").id == "out/checkpoint-5"


def test_source_named_by_the_caller_is_checked():
    assert source.find(samples.plain(), f"org/name@{COMMIT}").revision == COMMIT
    assert source.find(samples.plain(), "org/name").revision is None
    for wrong in ("/srv/data", "org/name@main", "a/b/c"):
        with pytest.raises(ValueError, match="not a dataset of the Hub"):
            source.find(samples.plain(), wrong)


def test_source_is_read_from_checksums_of_older_versions():
    info = DatasetInfo(
        license="Apache License 2.0\nfull text",
        config_name="plain",
        download_checksums={f"hf://datasets/org/name@{COMMIT}/data/train.parquet": {"num_bytes": 3, "checksum": None}},
    )
    found = source.find(Dataset(samples.plain().data, info=info))
    assert (found.id, found.revision, found.config_name) == ("org/name", COMMIT, "plain")
    assert found.license == {"license": "other", "license_name": "apache-license-2.0"}


def test_licence_is_read_from_a_card():
    assert source.license_of("---\nlicense: mit\nother: 1\n---\n") == {"license": "mit"}
    assert source.license_of("---\n- no mapping\n---\n") == {}
    assert source.license_of("---\na: [\n---\n") == {}
    assert source.license_of("# no metadata") == {}
