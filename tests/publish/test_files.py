"""Files in a directory: whole or not at all, the same when written twice, and enough to make the rows again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from hf_prune.publish import files, templates
from hf_prune.publish.replay import Record, ReplayError, replay
from hf_prune.selection import prune
from tests.publish import samples


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rewrite(directory: Path, **changes: object) -> None:
    path = directory / "hf_prune" / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def published(tmp_path):
    prune(samples.scored(), keep=0.5).save_to_disk(tmp_path, include_scores=True)
    return tmp_path


def test_writing_twice_changes_nothing(published):
    before = contents(published)
    rewrite(published, created="2020-01-01T00:00:00Z")
    files.write(prune(samples.scored(), keep=0.5), published)
    assert json.loads((published / "hf_prune/provenance.json").read_text())["created"] == "2020-01-01T00:00:00Z"
    assert before.keys() == contents(published).keys()
    files.write(prune(samples.scored(), keep=0.3), published)
    assert json.loads((published / "hf_prune/provenance.json").read_text())["created"] > "2020-01-01T00:00:00Z"


def test_readme_of_the_directory_is_merged(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    files.write(prune(samples.scored(), keep=0.5), tmp_path)
    assert "# Mine\n" in (tmp_path / "README.md").read_text()


def test_killed_write_leaves_the_old_file_and_nothing_else(published, monkeypatch):
    before = contents(published)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(prune(samples.scored(), keep=0.3), published)
    assert contents(published) == before


def test_files_are_written_through_fsspec():
    files.write(prune(samples.scored(), keep=0.5), "memory://half")
    found = fsspec.filesystem("memory").find("/half")
    assert [path.removeprefix("/half/") for path in found] == [
        "README.md",
        "hf_prune/kept_ids.parquet",
        "hf_prune/provenance.json",
        "hf_prune/provenance.jsonld",
    ]


def test_ids_come_with_scores_and_dropped_rows_on_request(tmp_path):
    pruned = prune(samples.scored(), keep=0.5)
    pruned.save_to_disk(tmp_path)
    files.write(pruned, tmp_path, include_scores=True, include_dropped=True)
    table = pq.read_table(tmp_path / "hf_prune" / "kept_ids.parquet")
    assert table["id"].to_pylist() == list(range(60))
    assert table.filter(table["kept"])["id"].to_pylist() == pruned.selection.keep_indices.tolist()
    assert table["influence_norm"].to_pylist() == pytest.approx(samples.scored()["influence_norm"][:])
    assert len(replay(str(tmp_path), source=samples.plain())) == 30


def test_saved_dataset_carries_its_provenance_and_replays(tmp_path):
    pruned = prune(samples.scored(), keep=0.5)
    pruned.save_to_disk(tmp_path / "half")
    assert list(load_from_disk(tmp_path / "half")) == list(pruned.remove_columns(list(samples.SCORES)))
    again = replay(str(tmp_path / "half"), source=samples.scored())
    assert list(again) == list(pruned.remove_columns(list(samples.SCORES)))
    assert again.features == pruned.remove_columns(list(samples.SCORES)).features


def test_templates_are_found_beside_the_package():
    assert templates.read("pruned_dataset.md.j2").startswith("---")
    with pytest.raises(FileNotFoundError, match="install it again"):
        templates.read("missing.md")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.select(range(59)), "it has 59 rows, not 60"),
        (lambda rows: rows.select([1, 0, *range(2, 60)]), "column 'text' has content digest"),
        (lambda rows: rows.map(lambda row, i: {"year": 1 if i == 59 else row["year"]}, with_indices=True), "'year'"),
        (lambda rows: rows.remove_columns("year"), "column 'year' is missing"),
    ],
)
def test_other_source_is_refused_in_words(published, change, words):
    with pytest.raises(ReplayError, match="source") as refused:
        replay(str(published), source=change(samples.plain()))
    assert words in str(refused.value)
    assert len(refused.value.differences) >= 1


def test_dropped_row_that_was_altered_is_refused_too(published):
    dropped = int(prune(samples.scored(), keep=0.5).selection.drop_indices[0])
    altered = samples.plain().map(lambda row, i: {"text": "x" if i == dropped else row["text"]}, with_indices=True)
    recorded = json.loads((published / "hf_prune/provenance.json").read_text())["source"]["columns"]["text"]
    with pytest.raises(ReplayError, match=recorded):
        replay(str(published), source=altered)


def test_columns_that_the_source_lacks_can_be_left_out(published):
    rows = replay(str(published), source=samples.plain().remove_columns("year"), columns=["text", "label"])
    assert rows.column_names == ["text", "label"]


def test_column_renamed_after_the_selection_is_made_again_under_its_old_name(tmp_path):
    prune(samples.scored(), keep=0.5).rename_column("year", "when").save_to_disk(tmp_path)
    assert replay(str(tmp_path), source=samples.plain()).column_names == ["text", "label", "x", "year"]


def test_rows_that_differ_from_the_published_ones_are_named(published):
    known = json.loads((published / "hf_prune/provenance.json").read_text())["result"]
    rewrite(published, result=known | {"columns": known["columns"] | {"label": "f" * 64}})
    with pytest.raises(ReplayError, match="column 'label' of the published rows has digest ffff"):
        replay(str(published), source=samples.plain())


def test_dataset_that_was_not_pruned_is_refused(tmp_path):
    with pytest.raises(TypeError, match="what prune returned"):
        files.write(samples.scored(), tmp_path)


def test_altered_ids_are_refused(published):
    path = published / "hf_prune" / "kept_ids.parquet"
    ids = pq.read_table(path)["id"].to_pylist()
    pq.write_table(pa.table({"id": ids[1:]}), path)
    with pytest.raises(ReplayError, match="has 29 ids, and 30 were recorded"):
        Record.open(str(published))
    pq.write_table(pa.table({"id": [*ids[1:], ids[-1] + 1]}), path)
    with pytest.raises(ReplayError, match="cannot be trusted"):
        Record.open(str(published))
    path.write_bytes(b"no parquet")
    with pytest.raises(ReplayError, match="not a Parquet file of ids"):
        Record.open(str(published))


def test_damaged_missing_or_newer_provenance_is_refused(published, tmp_path_factory):
    rewrite(published, schema_version=99)
    with pytest.raises(ReplayError, match="upgrade"):
        Record.open(str(published))
    rewrite(published, schema_version=1, result={})
    with pytest.raises(ReplayError, match="result: 'columns' is a required property"):
        Record.open(str(published))
    (published / "hf_prune" / "provenance.json").write_text("{")
    with pytest.raises(ReplayError, match="not JSON"):
        Record.open(str(published))
    with pytest.raises(ReplayError, match="not published by hf_prune"):
        Record.open(str(tmp_path_factory.mktemp("empty")))


def test_provenance_of_a_stranger_leads_to_no_file_of_this_machine(published):
    known = json.loads((published / "hf_prune/provenance.json").read_text())
    rewrite(published, source=known["source"] | {"id": str(published), "revision": "a" * 40})
    with pytest.raises(ReplayError, match="pass source="):
        replay(str(published))


def test_arguments_that_do_not_fit_are_refused(published):
    with pytest.raises(ValueError, match="level=3"):
        replay(str(published), level=3)
    with pytest.raises(ValueError, match="Level 2 scores again"):
        replay(str(published), level=2)
    with pytest.raises(ValueError, match="belong to level=2"):
        replay(str(published), model=object())
