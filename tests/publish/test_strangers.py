"""Directories of strangers: what is too large, too deep or false is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from hf_prune.publish import limits, rows
from hf_prune.publish.replay import Record, ReplayError, replay
from hf_prune.selection import prune
from tests.publish import samples


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("honest")
    prune(samples.scored(), keep=0.5).save_to_disk(directory)
    return directory


@pytest.fixture
def published(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "published"))


def refused(directory: Path) -> str:
    with pytest.raises(ReplayError) as error:
        replay(str(directory), source=samples.plain())
    return str(error.value)


def document(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "hf_prune/provenance.json").read_text()))


def kept(count: int) -> pa.Table:
    return pa.table({"id": pa.array(np.zeros(count, dtype=np.int64))})


# -- provenance.json -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"schema_version": NaN}', "NaN is not a JSON number"),
        (b'{"schema_version": 1, "x": Infinity}', "Infinity is not a JSON number"),
        (b'{"schema_version": ' + b"1" * 10_000 + b"}", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"schema_version": true}', "not a provenance file of hf_prune"),
        (b'{"schema_version": 1}', "is a required property"),
    ],
)
def test_damaged_json_is_refused_in_one_sentence(published, content, words):
    (published / "hf_prune/provenance.json").write_bytes(content)
    told = refused(published)
    assert words in told
    assert "\n" not in told
    assert len(told) < 500


def test_file_of_a_gigabyte_is_not_read(published):
    with (published / "hf_prune/provenance.json").open("wb") as stream:
        stream.truncate(2**30)
    assert "has 1,073,741,824 bytes, and at most 67,108,864 are read" in refused(published)


def test_named_pipe_in_place_of_a_file_does_not_wait(published):
    (published / "hf_prune/provenance.json").unlink()
    os.mkfifo(published / "hf_prune/provenance.json")
    assert "is not a regular file" in refused(published)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("source", "rows", -1),
        ("source", "rows", 0),
        ("source", "rows", "60"),
        ("source", "rows", 1e300),
        ("source", "revision", "main"),
        ("source", "columns", ["text"]),
        ("source", "columns", {"text": "short"}),
        ("source", "id", 7),
        ("result", "kept_ids_digest", None),
        ("result", "rows", 2**62),
        ("selection", "arguments", None),
    ],
)
def test_altered_field_is_named(published, part, field, value):
    known = document(published)
    known[part][field] = value
    (published / "hf_prune/provenance.json").write_text(json.dumps(known))
    told = refused(published)
    assert f"{part}.{field}" in told or "contradicts itself" in told
    assert len(told) < 500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": 61}, "contradicts itself"),
        ({"certificate": 61}, "contradicts itself"),
        ({"source": 29, "certificate": 29}, "contradicts itself"),
        ({"source": 2**40, "certificate": 2**40}, "at most 134,217,728 are read"),
    ],
)
def test_rows_that_are_only_claimed_take_no_memory(published, changes, words):
    known = document(published)
    known["source"]["rows"] = changes.get("source", 60)
    known["selection"]["certificate"]["n"] = changes.get("certificate", 60)
    (published / "hf_prune/provenance.json").write_text(json.dumps(known))
    assert words in refused(published)


# -- kept_ids.parquet ----------------------------------------------------------------------------------------------
def test_ids_that_unpack_to_very_many_rows_are_refused_from_the_footer(published):
    path = published / "hf_prune/kept_ids.parquet"
    with pq.ParquetWriter(path, kept(0).schema, compression="zstd") as writer:
        for _ in range(8):
            writer.write_table(kept(4_000_000), row_group_size=4_000_000)
    assert path.stat().st_size < 2**20
    before = pa.default_memory_pool().bytes_allocated()
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    old = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        told = refused(published)
    finally:
        pa.set_memory_pool(old)
    assert "has 32,000,000 ids, and 30 were recorded" in told
    assert (pool.max_memory() or 0) < 2**20
    assert pa.default_memory_pool().bytes_allocated() <= before + 2**20


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"id": ["a"] * 30}), "no column 'id' of 64-bit integers"),
        (pa.table({"x": list(range(30))}), "no column 'id' of 64-bit integers"),
        (pa.table({"id": list(range(60)), "kept": list(range(60))}), "that is not boolean"),
        (pa.table({"id": list(range(60)), "kept": [True] * 60}), "cannot be trusted"),
        (pa.table({"id": [None] * 30}, schema=pa.schema([("id", pa.int64())])), "lacks the values"),
    ],
)
def test_ids_of_another_kind_are_refused(published, table, words):
    pq.write_table(table, published / "hf_prune/kept_ids.parquet")
    assert words in refused(published)


# -- the rows ------------------------------------------------------------------------------------------------------
def resaved(published: Path, change: Any) -> str:
    """The words about a directory whose rows were saved again after a change, beside the old provenance."""
    change(Dataset.from_file(str(next(published.glob("*.arrow"))))).save_to_disk(published.parent / "altered")
    shutil.copytree(published / "hf_prune", published.parent / "altered" / "hf_prune")
    return refused(published.parent / "altered")


def test_published_rows_that_were_altered_are_named(published):
    told = resaved(published, lambda old: old.map(lambda row, i: {"text": "x"} if i == 29 else row, with_indices=True))
    assert "The published rows are not those of the provenance" in told
    assert "column 'text' of the published rows has digest" in told
    assert "'label'" not in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda old: old.select(range(29)), "29 rows are published, and 30 were recorded"),
        (lambda old: old.select([1, 0, *range(2, 30)]), "column 'text' of the published rows has digest"),
        (lambda old: old.remove_columns("year"), "column 'year' is not published"),
        (lambda old: old.add_column("more", [0] * 30), "column 'more' is published and was not recorded"),
        (lambda old: old.cast_column("year", Value("string")), "column 'year' of the published rows has digest"),
    ],
)
def test_other_rows_than_the_recorded_ones_are_refused(published, change, words):
    assert words in resaved(published, change)


def test_directory_without_its_rows_is_refused(published):
    for path in published.glob("*.a*"):
        path.unlink()
    assert "cannot be read" in refused(published)
    (published / "state.json").unlink()
    assert "holds no rows to compare with" in refused(published)


@pytest.mark.parametrize("name", ["../elsewhere.arrow", "/etc/passwd", "a\x00.arrow", 7, None, ".arrow"])
def test_rows_are_not_looked_for_outside_of_the_directory(published, name):
    shutil.copy(next(published.glob("*.arrow")), published.parent / "elsewhere.arrow")
    state = json.loads((published / "state.json").read_text())
    (published / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    assert "does not list Arrow files of this directory" in refused(published)


def test_files_that_published_rows_name_are_not_read(published):
    path = next(published.glob("*.arrow"))
    rows = Dataset.from_file(str(path))
    pictures = pa.array([{"bytes": None, "path": "/dev/zero"}] * len(rows), type=Image().pa_type)
    features = Features({**rows.features, "picture": Image()})
    table = rows.data.table.append_column("picture", pictures).replace_schema_metadata(features.arrow_schema.metadata)
    path.unlink()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert "cannot be read (ValueError: A row names the file /dev/zero" in refused(published)


def test_arrow_file_that_points_out_of_its_buffers_is_refused(published):
    path = next(published.glob("*.arrow"))
    table = Dataset.from_file(str(path)).data.table.combine_chunks()
    text = table["text"].chunk(0)
    offsets = np.frombuffer(text.buffers()[1], dtype=np.int32)[: len(text) + 1].copy()
    offsets[15] = 2**28
    broken = pa.StringArray.from_buffers(len(text), pa.py_buffer(offsets), text.buffers()[2])
    table = table.set_column(0, table.schema.field("text"), broken)
    path.unlink()  # the old file is mapped into memory
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert "cannot be read (ArrowInvalid" in refused(published)


def test_copy_of_a_repository_is_compared_too(published):
    old = Dataset.from_file(str(next(published.glob("*.arrow"))))
    for path in published.glob("*.*"):
        path.unlink()
    (published / "data").mkdir()
    old.to_parquet(published / "data/train-00000-of-00001.parquet")
    assert len(replay(str(published), source=samples.plain())) == 30
    old.select(range(29)).to_parquet(published / "data/train-00000-of-00001.parquet")
    assert "have 29 rows, not 30" in refused(published)


def test_pictures_that_were_moved_into_the_rows_are_the_same_rows(tmp_path):
    from PIL import Image as Picture

    paths = []
    for i in range(60):
        paths.append(str(tmp_path / f"{i}.png"))
        Picture.new("RGB", (2, 2), (i, 0, 0)).save(paths[-1])
    source = Dataset.from_dict({"image": paths}, features=Features({"image": Image()}))
    prune(samples.scored(source), keep=0.5).save_to_disk(tmp_path / "half")
    assert len(replay(str(tmp_path / "half"), source=source)) == 30
    Picture.new("RGB", (2, 2), (0, 99, 0)).save(paths[int(Record.open(str(tmp_path / "half")).keep_indices[0])])
    with pytest.raises(ReplayError, match="column 'image' has content digest"):
        replay(str(tmp_path / "half"), source=source)


# -- where a source may be -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("repo_id", "commit", "config_name", "split", "words"),
    [
        ("pandas", "a" * 40, None, "train", "not the 'owner/name'"),
        ("./pandas", "a" * 40, None, "train", "not the 'owner/name'"),
        ("/srv/data", "a" * 40, None, "train", "not the 'owner/name'"),
        ("a/../b", "a" * 40, None, "train", "not the 'owner/name'"),
        ("a/b..c", "a" * 40, None, "train", "not the 'owner/name'"),
        ("a/b\n", "a" * 40, None, "train", "not the 'owner/name'"),
        ("buckets/b", "a" * 40, None, "train", "not the 'owner/name'"),
        ("hf://datasets/a/b", "a" * 40, None, "train", "not the 'owner/name'"),
        ("a/b", "main", None, "train", "not a commit"),
        ("a/b", "A" * 40, None, "train", "not a commit"),
        ("a/b", "a" * 40, "../../x", "train", "name of a config"),
        ("a/b", "a" * 40, "..", "train", "name of a config"),
        ("a/b", "a" * 40, "", "train", "name of a config"),
        ("a/b", "a" * 40, None, "../train", "name of a split"),
        ("a/b", "a" * 40, None, "train[:50%]+test", "name of a split"),
    ],
)
def test_names_that_cannot_be_on_the_hub_are_refused_before_anything_is_asked(
    repo_id, commit, config_name, split, words
):
    with pytest.raises(ReplayError, match=words):
        rows.of_hub(repo_id, commit, config_name, split, rows=1)


# -- YAML of a card --------------------------------------------------------------------------------------------------
def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        (bomb(), "unfolds to too many values"),
        ("a: &a\n  b: *a", "refers to itself"),
        ("a:\t- b\n\tc", "not YAML"),
        ("- a", "not a YAML mapping"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("a: " + "x" * limits.CARD_BYTES, "at most 2,097,152 are read"),
    ],
)
def test_metadata_that_is_not_clean_is_refused_in_one_sentence(text, words):
    with pytest.raises(ReplayError, match=words) as error:
        limits.yaml_mapping(text, "README.md")
    assert "\n" not in str(error.value)


def test_metadata_with_an_alias_is_read():
    assert limits.card_metadata("---\na: &x [1]\nb: *x\n---\n", "README.md") == {"a": [1], "b": [1]}
    assert limits.card_metadata("no metadata", "README.md") == {}
