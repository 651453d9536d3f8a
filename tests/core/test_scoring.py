"""A scored dataset knows how it was scored, wherever `datasets` takes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset, load_from_disk

from hf_prune._core.config import ScoringConfig
from hf_prune._core.records import RecordedRun, ScoringRecord
from hf_prune._core.scoring import require_scoring, scoring_of, with_scoring
from hf_prune.selection import prune
from tests.publish import samples

RUN = RecordedRun.of("d" * 64, samples.manifest(schedule={"name": "linear"}))
RECORD = ScoringRecord(ScoringConfig(directions=samples.DIRECTIONS, seed=4), RUN, 0.5, 0.25)


@pytest.fixture(scope="module")
def scored() -> Dataset:
    return with_scoring(samples.scored(), RECORD)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.map(lambda row: {"year": 1}),
        lambda rows: rows.filter(lambda row: row["label"] == 1),
        lambda rows: rows.select([3, 1]),
        lambda rows: rows.shuffle(seed=0).flatten_indices(),
        lambda rows: rows.remove_columns("text").rename_column("x", "y"),
        lambda rows: rows.train_test_split(0.5)["train"],
        lambda rows: concatenate_datasets([rows, rows]),
        lambda rows: rows.add_column("more", list(range(len(rows)))),
        lambda rows: rows.with_format("numpy"),
        lambda rows: prune(rows, 0.5),
    ],
)
def test_changes_of_the_rows_keep_the_record(scored, change):
    assert scoring_of(change(scored)) == RECORD


def test_a_round_trip_through_disk_keeps_the_record_however_often(scored, tmp_path):
    for name in ("once", "twice"):
        scored.save_to_disk(str(tmp_path / name))
        scored = load_from_disk(str(tmp_path / name))
    assert scoring_of(scored) == RECORD
    DatasetDict(train=scored).save_to_disk(str(tmp_path / "splits"))
    assert scoring_of(load_from_disk(str(tmp_path / "splits"))["train"]) == RECORD
    assert prune(scored, 0.5).selection.scoring == RECORD


def test_a_round_trip_through_parquet_keeps_the_record(scored, tmp_path):
    scored.to_parquet(tmp_path / "rows.parquet")
    loaded = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path), split="train")
    assert scoring_of(loaded) == RECORD


def test_the_metadata_of_a_card_keeps_the_record(scored):
    read = Features._from_yaml_list(json.loads(json.dumps(scored.features._to_yaml_list())))
    assert scoring_of(scored.cast(read)) == RECORD


def test_rows_format_and_fingerprint_stay_as_they_were():
    plain = samples.scored().with_format("numpy", columns=["x"], output_all_columns=True)
    stamped = with_scoring(plain, RECORD)
    assert stamped.format == plain.format
    assert stamped._fingerprint == plain._fingerprint
    assert stamped.with_format(None)[:] == plain.with_format(None)[:]
    assert scoring_of(plain) is None


def test_the_record_goes_with_its_column(scored):
    assert scoring_of(scored.remove_columns("influence_norm")) is None
    with pytest.raises(ValueError, match="does not say how it was scored: score it with add_influence"):
        require_scoring(samples.plain())


def test_each_influence_column_has_its_own_record(scored):
    names = {name: name.replace("influence", "other") for name in samples.SCORES}
    other = replace(RECORD, config=replace(RECORD.config, column="other", seed=9))
    second = samples.scored().select_columns(list(names)).rename_columns(names)
    both = with_scoring(concatenate_datasets([scored, second], axis=1), other)
    assert scoring_of(both, "influence") == RECORD
    assert scoring_of(both, "other") == other == scoring_of(both)
    assert prune(both, 0.5, column="other").selection.scoring == other


@pytest.mark.parametrize(
    "stamp",
    [
        {"hf_prune": RECORD.to_dict() | {"beam": 3}},
        {"hf_prune": {"config": {"mode": "some"}}},
        {"hf_prune": {"config": {}, "recorded_share": "half"}},
        {"hf_prune": {"config": {}, "recorded_share": 0}},
        {"hf_prune": []},
        {"hf_prune": {"config": 3}},
    ],
)
def test_a_record_that_cannot_be_read_is_refused_in_a_sentence(stamp):
    rows = samples.scored()
    damaged = rows.cast_column("influence_norm", Value("float32", id=json.dumps(stamp)))
    with pytest.raises(ValueError, match="'influence_norm' has an unreadable record of how it was scored"):
        prune(damaged, 0.5)


def test_ids_of_features_that_are_not_ours_are_left_alone():
    rows = samples.scored().cast_column("influence_norm", Value("float32", id="mine"))
    assert scoring_of(rows) is None
    assert prune(rows, 0.5).selection.scoring is None


def test_the_record_of_a_run_holds_only_what_may_be_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("local/model").mkdir(parents=True)
    manifest = samples.manifest(
        model={"class": "Bert", "name_or_path": "local/model", "token": "secret"}, output_dir="/home/me", host="box"
    )
    manifest["optimizer"]["groups"][0]["path"] = "/home/me"
    stamp = (
        with_scoring(samples.scored(), replace(RECORD, run=RecordedRun.of("d" * 64, manifest)))
        .features["influence_norm"]
        .id
    )
    for planted in ("local", "secret", "home", "box"):
        assert planted not in stamp
    read = RecordedRun.from_dict(RUN.to_dict() | {"seeds": {"seed": 1, "token": "secret"}})
    assert read.seeds == {"seed": 1}
    assert RecordedRun.from_dict(json.loads(json.dumps(RUN.to_dict()))) == RUN
