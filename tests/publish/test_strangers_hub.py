"""Repositories of strangers, replayed by the unmodified clients among traps: nothing here is read or run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.hub_server import Hub
from tests.publish.told import told_by


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, Any]]]:
    with Hub() as hub:
        folder = str(tmp_path_factory.mktemp("visit"))
        yield hub, told_by("tests.publish.clients.stranger", hub, tmp_path_factory.mktemp("home"), folder)


@pytest.fixture
def told(visit: tuple[Hub, dict[str, Any]]) -> dict[str, Any]:
    return visit[1]


def test_the_traps_are_real_and_none_is_sprung(told):
    assert told["trap_works"]
    assert told["folder_is_preferred"]
    assert not told["marker"]


def test_source_comes_from_the_hub_although_a_folder_here_has_its_name(told):
    assert told["same_name_here"]


def test_name_that_is_no_repository_is_refused(told):
    for name, words in told["bare"].items():
        assert "is not the 'owner/name' of a dataset on the Hub" in words, name


def test_source_without_a_commit_is_not_loaded(told):
    assert "names no commit on the Hub" in told["unpinned"].pop("None")
    for name, words in told["unpinned"].items():
        assert "source.revision" in words, name
    assert "cannot be loaded" in told["no_such_commit"]


def test_config_and_split_of_a_stranger_are_names_and_no_paths(told):
    assert "cannot be the name of a config" in told["config"]
    assert "cannot be the name of a split" in told["split"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pickles", "cannot be loaded"),
        ("pickles-by-card", "a format that is not loaded from untrusted sources"),
        ("pickles-as-csv", "cannot be loaded"),
        ("pickles-as-parquet", "cannot be loaded"),
        ("tar", "a format that is not loaded from untrusted sources"),
        ("zip", "a format that is not loaded from untrusted sources"),
        ("script", "scripts are no longer supported"),
        ("absolute", "names data files outside the repository"),
        ("absolute-split", "names data files outside the repository"),
        ("file-url", "names data files outside the repository"),
        ("url", "names data files outside the repository"),
        ("chained", "names data files outside the repository"),
        ("up", "names data files outside the repository"),
        ("yaml-file", "names data files outside the repository"),
        ("yaml-bomb", "nested too deeply"),
        ("yaml-large", "at most 2,097,152 are read"),
        ("no-utf-8", "is not UTF-8"),
        ("empty", "cannot be loaded"),
    ],
)
def test_source_that_is_not_plain_data_of_its_own_is_refused_in_one_sentence(told, name, words):
    assert words in told["hostile"][name]
    assert "\n" not in told["hostile"][name]


@pytest.mark.parametrize("name", ["csv", "json-lines", "text", "pictures", "named-by-card"])
def test_source_that_is_plain_data_is_loaded(told, name):
    assert told["plain"][name] == "30 rows"


def test_source_with_more_rows_than_recorded_is_refused_from_its_footers(told):
    assert "has 3,000,000 rows in split 'train', not 60" in told["blown_up_source"]


def test_published_rows_are_compared_with_the_provenance(told):
    assert told["honest"] == "30 rows"
    assert "column 'label' of the published rows has digest" in told["altered"]
    assert "column 'text'" not in told["altered"]
    assert "column 'text' of the published rows has digest" in told["swapped"]
    assert "has 29 rows in split 'train', not 30" in told["shorter"]


def test_published_column_that_was_not_recorded_is_named(told):
    assert "column 'more' is published and was not recorded" in told["column"]
