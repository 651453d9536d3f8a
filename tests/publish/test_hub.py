"""Against a Hub on loopback: the unmodified clients in subprocesses, a real HTTP server, a store like git."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
import yaml

from hf_prune.publish import templates
from tests.hub_server import Hub
from tests.hub_store import ALICE
from tests.publish.told import told_by

TEXT = """# My reviews

Written by me, with <b>HTML</b>, a | bar and a line that says hf_prune.

## Contact

Write to `me`.
"""
KEYS = {
    "pretty_name": "Reviews, by me",
    "license": "cc-by-sa-4.0",
    "language": ["en", "fr"],
    "tags": ["mine", "hf-prune"],
    "custom": {"nested": [1, {"deep": True}], "date": "2024-01-01"},
    "source_datasets": "original",
    "configs": [{"config_name": "extra", "data_files": "extra/*.csv"}],
}
USER_CARD = f"---\n{yaml.safe_dump(KEYS, sort_keys=False)}---\n{TEXT}"


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, Any]]]:
    with Hub() as hub:
        yield hub, told_by("tests.publish.clients", hub, tmp_path_factory.mktemp("home"), given=USER_CARD)


@pytest.fixture
def life(clients: tuple[Hub, dict[str, Any]]) -> tuple[Hub, dict[str, Any]]:
    return clients[0], clients[1]["life"]


@pytest.fixture
def faults(clients: tuple[Hub, dict[str, Any]]) -> tuple[Hub, dict[str, Any]]:
    return clients[0], clients[1]["faults"]


def test_rows_features_and_order_are_equal_after_loading(life):
    _, told = life
    assert told["rows_equal"]
    assert told["streamed_equal"]


def test_second_and_third_push_change_nothing(life):
    _, told = life
    assert len(set(told["heads"])) == 1
    assert len(set(told["cards"])) == 1


def test_users_text_and_keys_are_intact_after_three_pushes(life):
    _, told = life
    card, data = told["cards"][-1], told["metadata"]
    assert TEXT.strip() in card
    for key, value in KEYS.items():
        if key not in ("tags", "source_datasets", "configs"):
            assert data[key] == value
    assert data["tags"] == ["mine", "hf-prune", "dataset-pruning"]
    assert data["source_datasets"] == ["original", "alice/My-Reviews"]
    assert KEYS["configs"][0] in data["configs"]
    assert {config["config_name"] for config in data["configs"]} == {"extra", "default"}


def test_source_and_licence_are_found_from_what_load_dataset_left(life):
    hub, told = life
    document = json.loads(hub.read("alice/reviews-half", "hf_prune/provenance.json", told["heads"][0]))
    jsonschema.Draft202012Validator(templates.schema()).validate(document)
    assert document["source"]["id"] == "alice/My-Reviews"
    assert document["source"]["revision"] == told["source_revision"]
    assert document["source"]["license"] == {"license": "cc-by-4.0"}
    assert "no licence" not in told["cards"][0]
    assert "`cc-by-4.0`" in told["cards"][0]


def test_another_selection_replaces_our_part_and_nothing_else(life):
    _, told = life
    before, after = told["cards"][-1], told["after_another_selection"]
    assert before != after
    assert after.count("<!-- hf_prune:start -->") == 1
    assert TEXT.strip() in after
    assert told["replayed_another"]


def test_scores_and_dropped_ids_are_published_on_request(life):
    hub, told = life
    table = pq.read_table(io.BytesIO(hub.read("alice/reviews-half", "hf_prune/kept_ids.parquet")))
    assert table.column_names == ["id", "kept", "influence", "influence_norm", "influence_eval_loss"]
    assert table.num_rows == 60
    assert sum(table["kept"].to_pylist()) == 30
    first = pq.read_table(io.BytesIO(hub.read("alice/reviews-half", "hf_prune/kept_ids.parquet", told["heads"][0])))
    assert first.column_names == ["id"]


def test_rates_live_side_by_side(life):
    hub, told = life
    files = hub.files("alice/rates")
    for rate, rows in (("keep-50", 30), ("keep-30", 18)):
        assert told["rates"][rate] == [rows, rows]
        assert f"hf_prune/{rate}/provenance.json" in files
        assert told["rates_card"].count(f"<!-- hf_prune:start {rate} -->") == 1
    assert told["rates_card"].count("At several rates.") == 1
    assert "observed" in told["rates_card"]


def test_branch_gets_card_and_provenance(life):
    hub, told = life
    assert told["branch_rows"] == 30
    assert told["replayed_branch"]
    assert "hf_prune/provenance.json" in hub.files("alice/rates", "half")
    assert "hf_prune/provenance.json" not in hub.files("alice/rates")


def test_second_default_config_is_refused_before_it_breaks_the_repository(life):
    _, told = life
    assert "The config 'keep-50' is the default one" in told["two_defaults"]


def test_private_is_passed_on(life):
    _, told = life
    assert told["private"]


def test_pull_request_holds_rows_card_and_files_and_leaves_main(life):
    _, told = life
    opened = told["pull_request"]
    assert opened["revision"] == "refs/pr/1"
    assert opened["url"].endswith("/discussions/1")
    assert not opened["main_moved"]
    assert {"hf_prune/proposal/provenance.json", "proposal/train-00000-of-00001.parquet"} <= set(
        told["pull_request_files"]
    )


def test_dictionary_is_pushed_with_its_plain_splits(life):
    hub, told = life
    assert told["splits"] == {"train": 30, "test": 10}
    assert json.loads(hub.read("alice/splits", "hf_prune/provenance.json"))["split"] == "train"


def test_provenance_of_another_split_is_not_replaced(life):
    _, told = life
    assert "describes the pruned split 'train'" in told["other_split"]


def test_dry_run_shows_card_and_files(life):
    _, told = life
    assert "30 of the 60 rows" in told["dry_run"]["card"]
    assert "hf_prune/provenance.json" in told["dry_run"]["files"]
    assert "data/train-*.parquet (30 rows)" in told["dry_run"]["files"]


def test_replay_makes_the_same_rows_at_the_recorded_commit(life):
    _, told = life
    assert told["replayed"]
    assert told["replayed_later"]


def test_replay_names_the_digest_of_an_altered_source(life):
    _, told = life
    (difference,) = told["refused"]
    assert difference.startswith("column 'text' has content digest ")


def test_nothing_published_holds_the_token_or_the_home(life):
    hub, _ = life
    home = str(Path.home())
    for repo in hub.repos.values():
        for commit in repo.commits.values():
            for path, blob in commit.files.items():
                assert ALICE.encode() not in blob.content, path
                assert len(home) <= 5 or home.encode() not in blob.content, path


@pytest.mark.parametrize("name", ["dropped", "late", "500", "429", "moved"])
def test_commit_that_the_hub_could_not_take_for_a_moment_is_made_once(faults, name):
    _, told = faults
    happened = told["commit"][name]
    assert happened["moved"]
    assert happened["rows"] == [15, 15]
    assert not happened["again_moved"]


@pytest.mark.parametrize("name", ["403", "500-for-ever", "412-for-ever", "dropped-for-ever"])
def test_refused_commit_leaves_the_old_state_whole_and_the_same_call_completes_it(faults, name):
    _, told = faults
    happened = told["commit"][name]
    assert happened["words"].startswith("PushError: ")
    assert "all push_to_hub again with the same arguments" in happened["words"]
    assert not happened["moved"]
    assert happened["rows"] == [30, 30]
    assert happened["finally"] == 15


def test_what_is_there_after_a_failure_is_said(faults):
    _, told = faults
    for name in ("403", "412-for-ever"):
        assert "Nothing was published: the commit was not made" in told["commit"][name]["words"]
    for name in ("500-for-ever", "dropped-for-ever"):
        assert "did not answer the commit" in told["commit"][name]["words"]
    assert "Nothing was published: the rows could not be uploaded" in told["no_upload"]
    assert told["shard_rows_after"] == 30


def test_commit_whose_answers_are_all_lost_is_there_once(faults):
    _, told = faults
    happened = told["commit"]["late-for-ever"]
    assert happened["rows"] == [15, 15]
    assert not happened["again_moved"]


def test_new_repository_holds_nothing_until_it_holds_all(faults):
    _, told = faults
    assert "Nothing was published" in told["new"]
    assert told["new_files"] == [".gitattributes"]


def test_pull_request_is_not_opened_twice(faults):
    _, told = faults
    assert "did not answer the commit" in told["request"]
    assert told["requests"] == ["refs/pr/1"]


def test_upload_of_a_shard_is_tried_again(faults):
    _, told = faults
    assert told["shard_rows"] == 30


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("list", "not a YAML mapping"),
        ("tab", "not YAML"),
        ("anchors", "refers to itself"),
        ("deep", "nested too deeply"),
        ("no-utf-8", "not UTF-8"),
        ("configs", "cannot be read"),
        ("infos", "cannot be read"),
    ],
)
def test_card_that_cannot_be_merged_is_met_before_anything_goes_up(faults, name, words):
    _, told = faults
    assert told["cards"][name]["words"].startswith("ValueError: ")
    assert words in told["cards"][name]["words"]
    assert "push" in told["cards"][name]["words"]
    assert told["cards"][name]["same"]


def test_card_is_merged_again_when_the_branch_moved(faults):
    hub, told = faults
    assert "A line by somebody else." in told["busy_card"]
    assert "15 of the 60 rows" in told["busy_card"]
    assert told["busy_rows"] == 15
    assert not hub.faults


def test_rights_are_respected(faults):
    _, told = faults
    assert told["wrong_token"] == 401
    assert "Nothing was published" in told["strangers_token"]
    assert "403" in told["strangers_token"]
    assert told["own_private"] == 30
    assert told["anonymous_sees_private"] is False
    assert told["stranger_sees_private"] is False
