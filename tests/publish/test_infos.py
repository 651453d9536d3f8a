"""What the card tells `datasets` of the rows: other splits and configs stay, and nothing contradicts the rows."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import ClassLabel, Features, Value

from hf_prune.publish import infos
from hf_prune.publish.shards import Shards, Split

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})


def update(metadata: dict[str, Any], split: str = "train", features: Features = FEATURES, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "config_name": "default",
        "data_dir": "data",
        "features": features,
        "replaced": 0,
        "set_default": None,
        "whole_config": False,
    }
    return infos.update(metadata, Shards([], {split: Split(3, 40)}), **(arguments | changes))


def test_new_card_names_files_features_and_sizes():
    told = update({"license": "mit"})
    assert list(told) == ["license", "dataset_info", "configs"]
    assert told["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    assert told["dataset_info"]["splits"] == [{"name": "train", "num_bytes": 40, "num_examples": 3}]
    assert Features._from_yaml_list(told["dataset_info"]["features"]) == FEATURES


def test_writing_twice_changes_nothing():
    once = update({"license": "mit"})
    assert update(once) == once


def test_other_split_stays_and_the_columns_must_agree():
    both = update(update({}), split="test")
    assert [one["split"] for one in both["configs"][0]["data_files"]] == ["train", "test"]
    assert both["dataset_info"]["dataset_size"] == 80
    with pytest.raises(ValueError, match=r"other splits \(train\), whose columns or types differ"):
        update(both, split="test", features=Features({"text": Value("string")}))


def test_the_only_split_may_get_other_columns():
    fewer = Features({"text": Value("string")})
    told = update(update({}), features=fewer)
    assert Features._from_yaml_list(told["dataset_info"]["features"]) == fewer


def test_all_splits_of_a_dictionary_replace_those_that_were_there():
    told = update(update({}), split="test", whole_config=True)
    assert [one["split"] for one in told["configs"][0]["data_files"]] == ["test"]
    assert [one["name"] for one in told["dataset_info"]["splits"]] == ["test"]


def test_splits_that_no_card_listed_are_not_hidden_by_ours():
    told = update({}, unlisted=["test"])
    assert [one["path"] for one in told["configs"][0]["data_files"]] == ["data/test-*", "data/train-*"]


def test_other_config_stays_and_the_default_one_is_named_once():
    two = update(update({}, config_name="a", data_dir="a", set_default=True), config_name="b", data_dir="b")
    assert [(one["config_name"], one.get("default")) for one in two["configs"]] == [("a", True), ("b", None)]
    moved = update(two, config_name="b", data_dir="b", set_default=True)
    assert [(one["config_name"], one.get("default")) for one in moved["configs"]] == [("a", None), ("b", True)]
    assert update(moved, config_name="b", data_dir="b") == moved
    with pytest.raises(ValueError, match="'b' is the default one: pass set_default=True"):
        update(moved)
    with pytest.raises(ValueError, match="named 'default' is there"):
        update(update({}), config_name="b", set_default=True)


@pytest.mark.parametrize("metadata", [{"configs": 7}, {"configs": [7]}, {"dataset_info": [7]}, {"dataset_info": "x"}])
def test_metadata_that_datasets_could_not_read_is_refused(metadata):
    with pytest.raises(ValueError, match="cannot be read"):
        update(metadata)
