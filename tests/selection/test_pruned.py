"""A pruned dataset is a `Dataset` in every respect, and never claims a selection that is not its rows."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from torch.utils.data import DataLoader

from hf_prune._core import digest
from hf_prune._core.digest import column_digests, content_digest
from hf_prune.selection import PrunedDataset, prune, select
from tests.selection.scored import scored


@pytest.fixture
def pruned() -> PrunedDataset:
    return prune(scored(), 0.5)


def test_it_holds_the_kept_rows_in_their_old_order(pruned: PrunedDataset):
    assert isinstance(pruned, Dataset)
    assert pruned["text"][:] == [f"row {i}" for i in pruned.selection.keep_indices]
    assert (np.diff(pruned.selection.keep_indices) > 0).all()
    assert len(pruned) == pruned.num_rows == 200
    assert pruned.selection == select(scored(), 0.5)
    assert pruned.features == scored().features


def test_its_fingerprint_is_that_of_the_same_select(pruned: PrunedDataset):
    dataset = scored()
    dataset._fingerprint = "abc"
    again, same = prune(dataset, 0.5), dataset.select(pruned.selection.keep_indices.tolist())
    assert again._fingerprint == same._fingerprint


def test_the_format_and_split_are_kept():
    pruned = prune(scored().with_format("numpy", columns=["influence", "label"]), 0.5)
    assert pruned.format["type"] == "numpy"
    assert set(pruned[0]) == {"influence", "label"}
    assert isinstance(pruned[0]["influence"], np.ndarray)


def test_rows_and_columns_and_slices_are_read_as_of_any_dataset(pruned: PrunedDataset):
    plain = scored().select(pruned.selection.keep_indices.tolist())
    assert pruned[3] == plain[3]
    assert pruned[-1] == plain[-1]
    assert pruned[5:8] == plain[5:8]
    assert pruned["label"][:] == plain["label"][:]
    assert list(pruned) == list(plain)
    assert pruned.to_list() == plain.to_list()


@pytest.mark.parametrize(
    "make",
    [
        lambda d: d.map(lambda row: {"text": row["text"] * 2}),
        lambda d: d.map(lambda rows: {"text": rows["text"] * 2}, batched=True, remove_columns=d.column_names),
        lambda d: d.filter(lambda row: row["label"] == 0),
        lambda d: d.filter(lambda row: True),
        lambda d: d.select(range(10)),
        lambda d: d.select([5, 3, 1]),
        lambda d: d.shuffle(seed=0),
        lambda d: d.sort("influence_norm"),
        lambda d: d.shard(4, 1),
        lambda d: d.take(5),
        lambda d: d.skip(5),
        lambda d: d.train_test_split(test_size=0.25, seed=0)["train"],
        lambda d: d.add_item(d[0]),
        lambda d: concatenate_datasets([d, d]),
        lambda d: d.flatten_indices(),
    ],
)
def test_what_makes_other_rows_is_a_plain_dataset(pruned: PrunedDataset, make):
    plain = scored().select(pruned.selection.keep_indices.tolist())
    result = make(pruned)
    assert type(result) is Dataset
    assert result.to_list() == make(plain).to_list()


@pytest.mark.parametrize(
    "make",
    [
        lambda d: d.rename_column("text", "sentence"),
        lambda d: d.remove_columns(["influence"]),
        lambda d: d.select_columns(["text"]),
        lambda d: d.with_format("torch"),
        lambda d: d.with_transform(lambda rows: {"n": [len(text) for text in rows["text"]]}),
        copy.copy,
        copy.deepcopy,
        lambda d: pickle.loads(pickle.dumps(d)),
    ],
)
def test_what_leaves_the_rows_keeps_the_selection(pruned: PrunedDataset, make):
    digest = content_digest(scored(), ["text", "label"])
    result = make(pruned)
    assert isinstance(result, PrunedDataset)
    assert result.selection == pruned.selection
    assert len(result) == len(result.selection.keep_indices)
    assert result.source_digest == digest


def test_filter_keeps_the_format(pruned: PrunedDataset):
    result = pruned.with_format("numpy", columns=["label"]).filter(lambda row: row["label"] == 0)
    assert type(result) is Dataset
    assert result.format["type"] == "numpy"
    assert set(result[0]) == {"label"}


def test_several_processes_map_it(pruned: PrunedDataset):
    result = pruned.map(lambda row: {"double": 2 * row["label"]}, num_proc=2)
    assert result["double"][:] == [2 * label for label in pruned["label"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_it(pruned: PrunedDataset, workers):
    rows = pruned.with_format("torch", columns=["influence", "label"])
    loader = DataLoader(rows, batch_size=64, num_workers=workers)
    batches = list(loader)
    assert [len(batch["label"]) for batch in batches] == [64, 64, 64, 8]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == pruned["label"][:]


def test_it_can_be_a_split_and_be_streamed(pruned: PrunedDataset):
    splits = DatasetDict(train=pruned)
    assert splits["train"].selection == pruned.selection
    assert [row["text"] for row in pruned.to_iterable_dataset()] == pruned["text"][:]


def test_the_source_is_digested_without_its_influence_columns(pruned: PrunedDataset):
    assert pruned.source_columns == column_digests(scored(), ["text", "label"])
    assert pruned.source_digest == content_digest(scored(), ["text", "label"])


def test_the_source_is_read_once_for_its_digests(monkeypatch):
    read = []
    batches = digest._batches
    monkeypatch.setattr(digest, "_batches", lambda rows, names: read.append(names) or batches(rows, names))
    pruned = prune(scored(), 0.5)
    assert (pruned.source_digest, pruned.source_columns) == (pruned.source_digest, pruned.source_columns)
    assert read == [["text", "label"]]


def test_it_can_be_pruned_again(pruned: PrunedDataset):
    again = prune(pruned, 0.5)
    assert len(again) == 100
    assert again.selection.certificate.n == 200
    assert set(again["text"]) < set(pruned["text"])


def test_keeping_all_rows_or_a_slice_works():
    dataset = scored()
    assert prune(dataset, 1.0)["text"][:] == dataset["text"][:]
    norm = np.arange(400, dtype="float32")
    head = prune(scored(influence_norm=norm, label=np.zeros(400, int)), 100, method="norm")
    assert head["text"][:] == [f"row {i}" for i in range(300, 400)]


def test_a_selection_of_another_dataset_is_refused(pruned: PrunedDataset):
    with pytest.raises(ValueError, match="is about 400 rows but the dataset has 200"):
        PrunedDataset.from_source(pruned, pruned.selection)


def test_repr_says_how_many_rows_of_how_many(pruned: PrunedDataset):
    assert repr(pruned).startswith("PrunedDataset({")
    assert "num_rows: 200 of 400" in repr(pruned)


def test_saved_rows_are_read_by_datasets(pruned: PrunedDataset, tmp_path: Path):
    pruned.save_to_disk(tmp_path / "half", include_scores=True)
    assert load_from_disk(str(tmp_path / "half")).to_list() == pruned.to_list()
    assert (tmp_path / "half" / "hf_prune").is_dir()
    assert (tmp_path / "half" / "README.md").is_file()
