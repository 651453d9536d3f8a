"""A column of a mapped file is hashed once; rows that may differ are hashed, whatever a fingerprint says of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Array2D, Dataset, Features, Value, concatenate_datasets, load_from_disk

from hf_prune import ReplayError, TrajectoryCallback, add_influence, prune, replay
from hf_prune._core import compat, digest
from hf_prune._core.digest import column_digests
from tests import toys
from tests.core.test_digest import COLUMNS


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Each time that a column is read and hashed: its name and its rows."""
    seen: list[tuple[str, int]] = []
    real = digest._batches

    def counted(dataset: Dataset, columns: list[str]) -> Iterator[pa.Table]:
        seen.extend((name, len(dataset)) for name in columns)
        yield from real(dataset, columns)

    monkeypatch.setattr(digest, "_batches", counted)
    return seen


def mapped(values: dict[str, Any], folder: Path, features: Features | None = None) -> Dataset:
    Dataset.from_dict(values, features=features).save_to_disk(str(folder))
    return load_from_disk(str(folder))


def truth(values: dict[str, Any]) -> dict[str, str]:
    """Digests of rows in memory, which are always read."""
    return column_digests(Dataset.from_dict(values), fresh=True)


def test_every_content_is_hashed_once_from_recording_to_replay(passes: list[tuple[str, int]], tmp_path: Path):
    toys.vectors(60).save_to_disk(str(tmp_path / "train"))
    toys.vectors(20, seed=9).save_to_disk(str(tmp_path / "dev"))
    rows, dev = load_from_disk(str(tmp_path / "train")), load_from_disk(str(tmp_path / "dev"))
    model, record = toys.Mlp(), tmp_path / "t"

    def hashed() -> dict[int, int]:
        """Rows: how often each of the two columns was read since the last question."""
        found = {n: passes.count(("labels", n)) for n in (60, 20, 30) if ("labels", n) in passes}
        assert len(passes) == 2 * sum(found.values())
        passes.clear()
        return found

    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(record)], num_train_epochs=2)
    assert rows.column_names == dev.column_names
    assert len(rows.column_names) == 2
    assert hashed() == {60: 1}
    scored = add_influence(rows, record, model=model, eval_dataset=dev, directions=4)
    assert hashed() == {60: 1, 20: 1}  # what was recorded is compared with the rows as they are after training
    add_influence(rows, record, model=model, eval_dataset=dev, directions=4)
    assert hashed() == {}
    pruned = prune(scored, keep=0.5)
    assert hashed() == {}
    pruned.save_to_disk(tmp_path / "pruned")
    assert hashed() == {60: 1, 30: 1}  # the file of the scores holds a copy of the rows
    replay(str(tmp_path / "pruned"), source=scored)
    assert hashed() == {30: 2}  # the rows that are published, loaded anew, and the kept ones: saved was a copy of them


def test_columns_are_shared_with_derived_datasets(passes: list[tuple[str, int]], tmp_path: Path):
    rows = mapped({"x": [1, 2, 3], "y": ["a", "b", "c"]}, tmp_path)
    column_digests(rows)
    passes.clear()
    for same in (
        rows.with_format("numpy"),
        rows.select_columns(["y"]),
        rows.rename_column("x", "z"),
        rows.remove_columns("x"),
        rows.add_column("x2", [7, 8, 9]).remove_columns("x2"),
    ):
        column_digests(same)
    assert passes == []
    found = column_digests(rows.add_column("new", [7, 8, 9]))
    assert passes == [("new", 3)]
    assert found == truth({"x": [1, 2, 3], "y": ["a", "b", "c"], "new": [7, 8, 9]})


def test_an_altered_copy_with_the_same_fingerprint_is_hashed_anew(tmp_path: Path):
    good, altered = {"x": [1, 2, 3]}, {"x": [1, 2, 4]}
    rows = mapped(good, tmp_path / "good")
    assert column_digests(rows) == truth(good)
    assert column_digests(with_fingerprint_of(rows, altered, tmp_path / "altered")) == truth(altered)


def with_fingerprint_of(rows: Dataset, values: dict[str, Any], folder: Path) -> Dataset:
    mapped(values, folder, rows.features)
    original = Path(rows.cache_files[0]["filename"]).parent
    (folder / "state.json").write_bytes((original / "state.json").read_bytes())
    copy = load_from_disk(str(folder))
    assert compat.fingerprint(copy) == compat.fingerprint(rows)
    return copy


def test_replay_refuses_an_altered_copy_of_the_source_that_it_has_seen(tmp_path: Path):
    model, rows = toys.Mlp(), toys.vectors(24)
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")])
    scored = add_influence(rows, tmp_path / "t", model=model, eval_dataset=toys.vectors(8, seed=1), directions=4)
    prune(scored, keep=0.5).save_to_disk(tmp_path / "pruned")
    values = {name: scored[name][:] for name in rows.column_names}
    source = mapped(values, tmp_path / "source", rows.features)
    assert len(replay(str(tmp_path / "pruned"), source=source)) == 12
    values["labels"][5] = (values["labels"][5] + 1) % toys.CLASSES
    altered = with_fingerprint_of(source, values, tmp_path / "altered")
    with pytest.raises(ReplayError, match="a row was altered"):
        replay(str(tmp_path / "pruned"), source=altered)


@pytest.mark.parametrize(
    "order", [[2, 0, 4, 1], [0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], []]
)
def test_selected_rows_of_every_kind_have_their_own_digests(order: list[int], tmp_path: Path):
    rows = mapped(COLUMNS, tmp_path)
    assert column_digests(rows) == truth(COLUMNS)
    assert column_digests(rows.select([1, 3, 5, 0]).select([0, 1])) == column_digests(rows.select([1, 3]), fresh=True)
    for _ in range(2):
        chosen = rows.select(order)
        assert column_digests(chosen) == column_digests(Dataset.from_dict(COLUMNS).select(order), fresh=True)


def test_shuffled_rows_are_hashed_anew(passes: list[tuple[str, int]], tmp_path: Path):
    values = {"x": list(range(20))}
    rows = mapped(values, tmp_path)
    column_digests(rows)
    passes.clear()
    shuffled = rows.shuffle(seed=3)
    found = column_digests(shuffled)
    assert passes == [("x", 20)]
    assert found == truth({"x": shuffled["x"][:]})
    assert column_digests(shuffled) != column_digests(rows)


def test_joined_and_repeated_rows_are_hashed_anew(tmp_path: Path):
    one, two = mapped({"x": [1, 2]}, tmp_path / "1"), mapped({"x": [3, 4]}, tmp_path / "2")
    assert column_digests(one) == truth({"x": [1, 2]})
    assert column_digests(concatenate_datasets([one, two])) == truth({"x": [1, 2, 3, 4]})
    assert column_digests(concatenate_datasets([two, one])) == truth({"x": [3, 4, 1, 2]})
    assert column_digests(concatenate_datasets([one, one])) == truth({"x": [1, 2, 1, 2]})


def test_a_file_that_is_written_to_underneath_is_hashed_anew(tmp_path: Path):
    rows = mapped({"x": ["before"] * 3}, tmp_path)
    assert column_digests(rows) == truth({"x": ["before"] * 3})
    (file,) = [Path(cache["filename"]) for cache in rows.cache_files]
    content = file.read_bytes()
    with file.open("r+b") as opened:
        opened.write(content.replace(b"before", b"behind"))
    os.utime(file, ns=(0, 0))  # the clock of a file system may be too coarse to tell two moments of a test apart
    assert rows["x"][:] == ["behind"] * 3
    assert column_digests(rows) == truth({"x": ["behind"] * 3})


def test_rows_in_memory_are_read_each_time_since_an_array_may_share_them():
    shared = np.arange(4)
    rows = Dataset(pa.table({"x": shared}))
    assert column_digests(rows) == truth({"x": [0, 1, 2, 3]})
    shared[2] = 9
    assert rows["x"][:] == [0, 1, 9, 3]
    assert column_digests(rows) == truth({"x": [0, 1, 9, 3]})


def test_memory_that_is_used_again_is_hashed_anew(tmp_path: Path):
    for number in range(20):
        rows = mapped({"x": [number] * 5}, tmp_path / str(number))
        assert column_digests(rows) == truth({"x": [number] * 5})
        del rows
        gc.collect()


def test_extension_types_are_remembered_and_told_apart(passes: list[tuple[str, int]], tmp_path: Path):
    features = Features({"m": Array2D((2, 2), "int32"), "y": Value("int64")})
    values = {"m": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], "y": [0, 1]}
    Dataset.from_dict(values, features=features).save_to_disk(str(tmp_path))
    rows = load_from_disk(str(tmp_path))
    first = column_digests(rows)
    passes.clear()
    assert column_digests(rows) == first
    assert passes == []
    turned = column_digests(rows.select([1, 0]))
    assert turned == column_digests(rows.select([1, 0]), fresh=True)
    assert turned != first
