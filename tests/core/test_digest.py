"""A content digest depends on the rows, and on nothing about how Arrow holds them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    Features,
    Image,
    LargeList,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from hf_prune._core import digest
from hf_prune._core.digest import column_digests, content_digest

COLUMNS: dict[str, list[Any]] = {
    "whole": [7, 1, 8, 2, 9, 3],
    "number": [1, None, 3, 4, -5, 6],
    "real": [0.5, 1e-30, None, float("nan"), -2.0, 0.0],
    "flag": [True, None, False, True, True, False],
    "text": ["x", None, "", "two words", "é", "x"],
    "blob": [b"a", b"", None, b"\x00\x01", b"zz", b"a"],
    "list": [[1, 2], None, [], [3, None], [4], [5, 6, 7]],
    "nested": [[["a"], []], None, [], [["b", None]], [None], [["c"]]],
    "struct": [{"q": 1, "w": ["a"]}, None, {"q": None, "w": []}, {"q": 3, "w": None}, {"q": 4, "w": ["b", "c"]}, None],
    "nothing": [None] * 6,
}


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict(COLUMNS)


def test_chunks_do_not_matter(rows: Dataset) -> None:
    pieces = [rows.select(range(0, 1)), rows.select(range(1, 4)), rows.select([4, 5])]
    assert column_digests(concatenate_datasets(pieces)) == column_digests(rows)


def test_slices_do_not_matter(rows: Dataset) -> None:
    longer = concatenate_datasets([rows, rows, rows])
    assert column_digests(longer.select(range(6, 12))) == column_digests(rows)


@pytest.mark.parametrize("column", list(COLUMNS))
def test_offsets_of_arrow_slices_do_not_matter(column: str) -> None:
    array = pa.array(COLUMNS[column])
    hashers = [digest._ColumnHasher(array.type) for _ in range(2)]
    hashers[0].update(array.slice(2, 3))
    hashers[1].update(pa.array(COLUMNS[column][2:5], type=array.type))
    assert hashers[0].hexdigest() == hashers[1].hexdigest()


def test_indices_mappings_do_not_matter(rows: Dataset) -> None:
    order = [3, 0, 5, 1, 4, 2]
    there_and_back = rows.select(order).select(np.argsort(order).tolist())
    assert there_and_back._indices is not None
    assert column_digests(there_and_back) == column_digests(rows)


def test_batches_do_not_matter(rows: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = column_digests(rows)
    monkeypatch.setattr(digest, "_BATCH_ROWS", 1)
    assert column_digests(rows) == whole


def test_formats_do_not_matter(rows: Dataset) -> None:
    shown = rows.remove_columns(["nothing", "struct", "nested", "blob"])
    assert column_digests(shown.with_format("numpy")) == column_digests(shown)
    assert column_digests(shown.with_transform(lambda batch: batch)) == column_digests(shown)


def test_large_and_small_types_do_not_matter() -> None:
    small = Dataset.from_dict(
        {"text": ["a", None, "bc"], "list": [[1], None, [2, 3]]},
        features=Features({"text": Value("string"), "list": List(Value("int64"))}),
    )
    large = Dataset.from_dict(
        {"text": ["a", None, "bc"], "list": [[1], None, [2, 3]]},
        features=Features({"text": Value("large_string"), "list": LargeList(Value("int64"))}),
    )
    assert pa.types.is_large_string(large.data.schema.field("text").type)
    assert column_digests(small) == column_digests(large)


def test_a_disk_round_trip_does_not_matter(rows: Dataset, tmp_path: Any) -> None:
    rows.select([1, 0, 2]).save_to_disk(str(tmp_path / "d"))
    assert column_digests(Dataset.load_from_disk(str(tmp_path / "d"))) == column_digests(rows.select([1, 0, 2]))


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "nothing"])
def test_any_changed_value_changes_its_column_only(column: str, rows: Dataset) -> None:
    for row in range(6):
        changed = {name: list(values) for name, values in COLUMNS.items()}
        changed[column][row] = changed[column][(row + 1) % 6]
        if repr(changed[column][row]) == repr(COLUMNS[column][row]):
            continue
        other = column_digests(Dataset.from_dict(changed, features=rows.features))
        mine = column_digests(rows)
        assert {name for name in COLUMNS if other[name] != mine[name]} == {column}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([["a", "b"], ["c"]], [["a"], ["b", "c"]]),
        (["ab", "c"], ["a", "bc"]),
        ([[], None], [None, []]),
        (["", None], [None, ""]),
        ([0, None], [None, 0]),
        ([[[1], [2]]], [[[1, 2]]]),
    ],
)
def test_boundaries_and_nulls_count(left: list[Any], right: list[Any]) -> None:
    assert column_digests(Dataset.from_dict({"x": left})) != column_digests(Dataset.from_dict({"x": right}))


def test_row_order_and_row_count_and_names_count(rows: Dataset) -> None:
    whole = content_digest(rows)
    assert content_digest(rows.select([1, 0, 2, 3, 4, 5])) != whole
    assert content_digest(rows.select(range(5))) != whole
    assert content_digest(rows.rename_column("text", "words")) != whole
    assert content_digest(rows.select_columns(list(reversed(rows.column_names)))) == whole


def test_fixed_size_and_extension_types_are_digested() -> None:
    features = Features(
        {"v": List(Value("float32"), length=2), "m": Array2D((2, 2), "int32"), "y": ClassLabel(names=["n", "p"])}
    )
    data = {"v": [[1.0, 2.0], None, [3.0, 4.0]], "m": [[[1, 2], [3, 4]]] * 3, "y": [0, 1, 0]}
    rows = Dataset.from_dict(data, features=features)
    assert column_digests(rows.select([2, 1, 0]).select([2, 1, 0])) == column_digests(rows)
    other = Dataset.from_dict({**data, "v": [[1.0, 2.0], None, [3.0, 5.0]]}, features=features)
    assert column_digests(other)["v"] != column_digests(rows)["v"]
    assert column_digests(other)["m"] == column_digests(rows)["m"]


def test_images_are_digested_without_decoding() -> None:
    rows = Dataset.from_dict({"i": [{"bytes": b"no image", "path": None}]}, features=Features({"i": Image()}))
    assert len(column_digests(rows)["i"]) == 64


@pytest.mark.parametrize("width", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_the_width_of_whole_numbers_does_not_matter(width: str) -> None:
    values = {"n": [3, None, 0, 127], "l": [[1, 2], None, [], [100]]}
    narrow = Dataset.from_dict(values, features=Features({"n": Value(width), "l": List(Value(width))}))
    assert column_digests(narrow) == column_digests(Dataset.from_dict(values))


@pytest.mark.parametrize("width", ["float16", "float32", "float64"])
def test_the_width_of_real_numbers_matters_only_where_it_changes_them(width: str) -> None:
    def digest_of(values: list[Any], kind: str) -> dict[str, str]:
        return column_digests(Dataset.from_dict({"x": values}, features=Features({"x": Value(kind)})))

    held, rounded = [0.5, -2.0, None, float("nan"), 1024.0], [0.5, 0.1]
    assert digest_of(held, width) == digest_of(held, "float64")
    assert (digest_of(rounded, width) == digest_of(rounded, "float64")) == (width == "float64")


def test_other_numbers_are_never_equal() -> None:
    def digest_of(values: list[Any], kind: str) -> str:
        return column_digests(Dataset(pa.table({"x": pa.array(values, type=Value(kind)())})))["x"]

    told = [
        digest_of([2**63, 1], "uint64"),
        digest_of([-(2**63), 1], "int64"),
        digest_of([1, 0], "int64"),
        digest_of([1.0, 0.0], "float32"),
        digest_of([True, False], "bool"),
        digest_of(["1", "0"], "string"),
    ]
    assert len(set(told)) == len(told)


def test_neither_batches_nor_widths_show_where_many_numbers_are_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_BLOCK", 4)
    values = [[1, 2, 3], [400], [], [70_000, 5], [6], [2**40, -1, 7, 8, 9]]
    rows = Dataset.from_dict({"x": values})
    whole = column_digests(rows)
    monkeypatch.setattr(digest, "_BATCH_ROWS", 2)
    assert column_digests(rows) == whole
    assert column_digests(rows.select([1, 0, 2, 3, 4, 5])) != whole


def test_the_order_of_a_structs_fields_does_not_matter() -> None:
    one, other = [{"q": 1, "w": "a"}, None], [{"w": "a", "q": 1}, None]
    digests = [column_digests(Dataset.from_dict({"x": rows})) for rows in (one, other)]
    assert digests[0] == digests[1]
    assert digests[0] != column_digests(Dataset.from_dict({"x": [{"q": 1, "w": "b"}, None]}))


def test_rows_that_were_json_have_the_same_digests(rows: Dataset, tmp_path: Path) -> None:
    whole = (
        rows.remove_columns(["blob", "real", "nothing"])
        .map(lambda row: {"score": 0.25})
        .cast_column("number", Value("int16"))
    )
    whole.to_json(tmp_path / "rows.jsonl")
    again = Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path))
    assert column_digests(again) == column_digests(whole)


def pictures(folder: Path, seed: int = 0) -> None:
    for place in range(6):
        file = folder / f"c{place % 2}" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(seed + place).integers(0, 255, (4, 4), dtype=np.uint8)
        PIL.Image.fromarray(values).save(file)


def test_images_are_their_content_wherever_their_files_lie(tmp_path: Path) -> None:
    def loaded(name: str) -> Dataset:
        cache = str(tmp_path / f"cache-{name}")
        return load_dataset("imagefolder", data_dir=str(tmp_path / name), cache_dir=cache, split="train")

    pictures(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "moved")
    rows = loaded("here")
    digests = column_digests(rows)
    assert column_digests(loaded("moved")) == digests
    rows.save_to_disk(str(tmp_path / "saved"))
    assert column_digests(load_from_disk(str(tmp_path / "saved"))) == digests
    pictures(tmp_path / "other", seed=9)
    changed = column_digests(loaded("other"))
    assert changed["label"] == digests["label"]
    assert changed["image"] != digests["image"]


def test_a_picture_that_is_written_over_is_read_again(tmp_path: Path) -> None:
    pictures(tmp_path / "here")
    rows = load_dataset("imagefolder", data_dir=str(tmp_path / "here"), cache_dir=str(tmp_path), split="train")
    before = column_digests(rows)
    pictures(tmp_path / "here", seed=5)
    assert column_digests(rows)["image"] != before["image"]


@pytest.mark.parametrize("path", ["/nowhere/a.png", "https://example.org/a.png", "/dev/zero", "a\0b"])
def test_a_picture_that_cannot_be_read_is_its_path(path: str) -> None:
    features = Features({"i": Image()})
    table = pa.table({"i": pa.array([{"bytes": None, "path": path}, None], type=Image().pa_type)})
    rows, other = Dataset(table).cast(features), {"bytes": None, "path": "/nowhere/b.png"}
    missing = Dataset(pa.table({"i": pa.array([other, None], type=Image().pa_type)})).cast(features)
    assert column_digests(rows) == column_digests(rows)
    assert column_digests(rows) != column_digests(missing)


def test_an_empty_dataset_and_a_missing_column(rows: Dataset) -> None:
    assert set(column_digests(rows.select([]))) == set(COLUMNS)
    with pytest.raises(ValueError, match="no column 'absent'"):
        column_digests(rows, ["absent"])
