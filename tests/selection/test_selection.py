"""A selection on disk: what is loaded is what was saved, or an error that says what is wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_prune.selection import Selection, SelectionConfig, select
from tests.selection.scored import scored


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    select(scored(), 0.5).save(tmp_path / "half")
    return tmp_path / "half"


def _edit(saved: Path, **changes: object) -> None:
    file = saved / "selection.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("arguments", [{"keep": 0.5}, {"keep": 400}, {"epsilon": 0.05, "balance": False}])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, arguments):
    selection = select(scored(), **arguments)
    selection.save(tmp_path / "new" / "place")
    loaded = Selection.load(tmp_path / "new" / "place")
    assert loaded == selection
    assert loaded.keep_indices.dtype == np.int64
    assert sorted(os.listdir(tmp_path / "new" / "place")) == [
        "dropped_ids.parquet",
        "kept_ids.parquet",
        "rows.parquet",
        "selection.json",
    ]


def test_other_rows_under_the_same_certificate_are_refused():
    selection = select(scored(), 0.5)
    assert replace(selection, config=selection.config) == selection
    with pytest.raises(ValueError, match="not those that the certificate is about"):
        replace(selection, keep_indices=selection.drop_indices, drop_indices=selection.keep_indices)


def test_a_saved_selection_can_be_replaced(saved: Path):
    other = select(scored(), 0.25, seed=1)
    other.save(saved)
    assert Selection.load(saved) == other


@pytest.mark.parametrize("file", ["selection.json", "kept_ids.parquet", "dropped_ids.parquet", "rows.parquet"])
def test_a_missing_file_is_named(saved: Path, file):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"There is no {file} in .*pass the directory that `Selection.save`"):
        Selection.load(saved)


@pytest.mark.parametrize("file", ["kept_ids.parquet", "dropped_ids.parquet", "rows.parquet"])
@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b"", lambda b: b[:40] + b"\xff" + b[41:]])
def test_a_damaged_file_is_named(saved: Path, file, damage):
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(damage(content))
    with pytest.raises(ValueError, match=f"{file} is damaged or belongs to another selection"):
        Selection.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"schema_version": "x"}'])
def test_a_damaged_head_is_named(saved: Path, text):
    (saved / "selection.json").write_text(text)
    with pytest.raises(ValueError, match=r"selection\.json is (not JSON|not a selection)"):
        Selection.load(saved)


def test_a_newer_version_says_to_upgrade(saved: Path):
    _edit(saved, schema_version=99)
    with pytest.raises(ValueError, match=r"schema version 99, newer than 1, .*upgrade"):
        Selection.load(saved)


def test_a_head_that_lacks_a_part_is_named(saved: Path):
    head = json.loads((saved / "selection.json").read_text())
    del head["certificate"]
    (saved / "selection.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match="lacks the field 'certificate'"):
        Selection.load(saved)


def test_a_certificate_about_other_rows_is_refused(saved: Path):
    certificate = json.loads((saved / "selection.json").read_text())["certificate"]
    for wrong in ({"n": 401}, {"kept": 199}, {"n": "x"}, {"random_shift": 3}):
        _edit(saved, certificate=certificate | wrong)
        with pytest.raises(ValueError, match=r"selection\.json is damaged|ids, and"):
            Selection.load(saved)


def test_files_from_strangers_are_checked_though_their_digests_match(saved: Path):
    import hashlib

    for table in (pa.table({"id": range(200, 0, -1)}), pa.table({"row": [1]}), pa.table({"id": [1.5, 2.5]})):
        pq.write_table(table, saved / "kept_ids.parquet")
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in saved.glob("*.parquet")}
        _edit(saved, sha256=digests)
        with pytest.raises(ValueError, match=r"damaged|no column 'id' of 64-bit integers"):
            Selection.load(saved)


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path):
    (tmp_path / "half").write_text("mine")
    with pytest.raises(ValueError, match="is a file: pass a directory"):
        select(scored(), 0.5).save(tmp_path / "half")
    assert (tmp_path / "half").read_text() == "mine"


def test_ids_cannot_be_changed():
    selection = select(scored(), 0.5)
    with pytest.raises(ValueError, match="read-only"):
        selection.keep_indices[0] = 3
    with pytest.raises(AttributeError):
        selection.resolved = {}


def test_ids_that_are_no_partition_are_refused():
    selection = select(scored(), 0.5)
    with pytest.raises(ValueError, match="are not 200 and the other rows"):
        replace(selection, keep_indices=selection.keep_indices[:-1])
    with pytest.raises(ValueError, match="keep_indices has to be a sorted list"):
        replace(selection, keep_indices=selection.keep_indices[::-1])


def test_a_selection_holds_what_was_asked_and_what_came_of_it():
    selection = select(scored(), 0.5)
    assert selection.config == SelectionConfig(keep=0.5)
    assert selection.resolved["kept"] == 200
    assert selection.resolved["balance"] == "label"
    assert selection.resolved["buckets"] == 1
    assert selection.resolved["difficulty"]["kind"] == "represent"
