"""Rows are published without scores and tokens, unless asked for; a dictionary keeps what a dataset keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from hf_prune import PrunedDataset, PrunedDatasetDict, prune, replay
from hf_prune.publish import provenance
from hf_prune.publish.push import push_to_hub
from tests.publish import samples

TOKENS = ["input_ids", "attention_mask", "labels"]
PLAIN = ["text", "label", "x", "year"]


def tokenised(rows: Dataset) -> Dataset:
    return rows.map(lambda row: {"input_ids": [3, 4], "attention_mask": [1, 1], "labels": [3, -100]})


@pytest.fixture
def pruned() -> PrunedDataset:
    return prune(samples.scored(tokenised(samples.plain())), keep=0.5)


def test_scores_and_tokens_are_saved_only_where_that_is_asked_for(pruned: PrunedDataset, tmp_path: Path):
    pruned.save_to_disk(tmp_path / "plain")
    pruned.save_to_disk(tmp_path / "scores", include_scores=True)
    pruned.save_to_disk(tmp_path / "all", include_scores=True, include_tokens=True)
    assert load_from_disk(str(tmp_path / "plain")).column_names == PLAIN
    assert load_from_disk(str(tmp_path / "scores")).column_names == [*PLAIN, *samples.SCORES]
    assert load_from_disk(str(tmp_path / "all"))[:] == pruned[:]
    for name in ("plain", "scores", "all"):
        assert len(replay(str(tmp_path / name), source=tokenised(samples.plain()))) == 30


def test_push_plans_the_same(pruned: PrunedDataset):
    def columns(**included: bool) -> list[str]:
        result = push_to_hub(pruned, "me/half", dry_run=True, **included).provenance["result"]
        return sorted([*result["columns"], *result["score_columns"]])

    assert columns() == sorted(PLAIN)
    assert columns(include_tokens=True) == sorted([*PLAIN, *TOKENS])
    assert columns(include_scores=True) == sorted([*PLAIN, *samples.SCORES])


def test_leaving_tokens_out_is_said(pruned: PrunedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pruned.save_to_disk(tmp_path)
    assert "input_ids, attention_mask, labels are tokens of what the rows say, and are left out" in caplog.text
    assert "include_tokens=True" in caplog.text


def test_tokens_stay_where_nothing_else_says_what_the_row_is(tmp_path: Path):
    bare = tokenised(samples.plain()).remove_columns(["text"])
    prune(samples.scored(bare), keep=0.5).save_to_disk(tmp_path)
    assert set(TOKENS) < set(load_from_disk(str(tmp_path)).column_names)


def test_labels_that_are_no_tokens_stay(tmp_path: Path):
    rows = tokenised(samples.plain()).remove_columns("labels").add_column("labels", [i % 2 for i in range(60)])
    prune(samples.scored(rows), keep=0.5).save_to_disk(tmp_path)
    assert load_from_disk(str(tmp_path)).column_names == [*PLAIN, "labels"]


def test_rows_with_a_transform_can_be_saved(pruned: PrunedDataset, tmp_path: Path):
    pruned.with_transform(lambda rows: {"n": [len(text) for text in rows["text"]]}).save_to_disk(tmp_path)
    assert load_from_disk(str(tmp_path)).column_names == PLAIN


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d,
        lambda d: d.rename_column("year", "when"),
        lambda d: d.remove_columns("year"),
        lambda d: d.select_columns(["text", "label"]),
        lambda d: d.with_format("numpy"),
    ],
)
def test_a_dictionary_with_a_pruned_split_keeps_card_and_provenance(change, tmp_path: Path):
    splits = DatasetDict(train=samples.scored(), test=samples.plain(10, seed=1))
    pruned = change(prune(splits, keep=0.5, split="train"))
    assert isinstance(pruned, PrunedDatasetDict)
    plan = pruned.push_to_hub("me/half", dry_run=True)
    assert "30 of the 60 rows" in plan.card
    assert plan.provenance["split"] == "train"
    pruned.save_to_disk(str(tmp_path / "splits"))
    loaded = load_from_disk(str(tmp_path / "splits"))
    assert (len(loaded["train"]), len(loaded["test"])) == (30, 10)
    assert loaded["train"].column_names == loaded["test"].column_names
    folder = tmp_path / "splits" / "train"
    assert "30 of the 60 rows" in (folder / "README.md").read_text()
    assert json.loads((folder / "hf_prune" / "provenance.json").read_text())["result"]["rows"] == 30


def test_other_rows_in_a_dictionary_make_it_a_plain_one():
    splits = DatasetDict(train=samples.scored(), test=samples.plain(10, seed=1))
    pruned = prune(splits, keep=0.5, split="train")
    assert type(pruned.filter(lambda row: row["label"] == 0)) is DatasetDict
    assert type(pruned.shuffle(seed=0)) is DatasetDict


def test_rows_that_were_put_in_the_place_of_the_kept_ones_are_refused():
    pruned = prune(samples.scored(), keep=0.5)
    others = pruned.source.select(pruned.selection.drop_indices.tolist())
    pruned._indices = others._indices
    with pytest.raises(ValueError, match="The rows are not those that the selection keeps"):
        provenance.build(pruned)


def test_a_part_of_the_source_is_not_called_the_source(tmp_path: Path):
    folder = tmp_path / "org___name" / "default" / "0.0.0" / ("a" * 40)
    samples.plain().save_to_disk(str(folder))
    whole = Dataset.from_file(str(next(folder.glob("*.arrow"))), split="train")
    from datasets import SplitDict, SplitInfo

    whole.info.splits = SplitDict({"train": SplitInfo("train", num_examples=60)})
    texts = {}
    for name, rows in {"whole": whole, "part": whole.filter(lambda row: row["year"] is not None)}.items():
        document = provenance.build(prune(samples.scored(rows), keep=0.5))
        assert (document["source"]["id"], document["source"]["split_rows"]) == ("org/name", 60)
        texts[name] = push_to_hub(prune(samples.scored(rows), keep=0.5), "me/half", dry_run=True).card
    assert "30 of the 60 rows of [org/name]" in texts["whole"]
    assert "of the 51 rows that were made from the 60 rows of [org/name]" in texts["part"]
