"""A directory holds the old rows with their provenance or the new ones with theirs, however saving ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from hf_prune._core import io
from hf_prune.publish import save
from hf_prune.publish.replay import replay
from hf_prune.selection import prune
from tests.publish import samples
from tests.publish.clients.faults import BAD_CARDS

ROOT = Path(__file__).parents[2]
OLD = {"rows": 30, "replayed": 30, "card": True, "notes": "mine"}
NEW = {"rows": 15, "replayed": 15, "card": True, "notes": "mine"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.publish.clients.killed", str(tmp_path_factory.mktemp("killed"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def test_saving_that_is_killed_at_any_moment_leaves_the_old_state_or_the_new_one(told):
    states = [{name: one[name] for name in OLD} for one in told["over"]]
    assert all(state in (OLD, NEW) for state in states)
    assert sum(one["status"] == -9 for one in told["over"]) >= 20
    assert told["over"][0]["rows"] == 30
    assert told["over"][-1]["status"] == 0
    assert states[-1] == NEW


def test_new_directory_is_not_there_until_it_is_whole(told):
    for one in told["new"]:
        assert one["rows"] is None or (one["rows"], one["replayed"], one["card"]) == (15, 15, True)
    assert sum(one["status"] == -9 for one in told["new"]) >= 10
    assert told["new"][-1]["status"] == 0


def test_full_disk_leaves_the_old_state_and_nothing_else(told):
    for one in told["full"]:
        assert one["status"] == 3
        assert one["left"] == ["half"]
        assert {name: one[name] for name in OLD} == OLD


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["list", "tab", "anchors", "deep", "no-utf-8"])
def test_card_that_cannot_be_merged_is_met_before_a_row_is_written(tmp_path, name):
    target = tmp_path / "half"
    prune(samples.scored(), keep=0.5).save_to_disk(target)
    (target / "README.md").write_bytes(BAD_CARDS[name])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"README\.md") as error:
        prune(samples.scored(), keep=0.25).save_to_disk(target)
    assert "save again" in str(error.value)
    assert contents(tmp_path) == before


def test_old_rows_go_and_other_files_stay(tmp_path):
    target = tmp_path / "half"
    prune(samples.scored(), keep=0.5).save_to_disk(target, num_shards=3)
    (target / "notes").mkdir()
    (target / "notes" / "a.txt").write_text("mine")
    (target / "link").symlink_to("notes/a.txt")
    prune(samples.scored(), keep=0.25).save_to_disk(target)
    assert [path.name for path in target.glob("*.arrow")] == ["data-00000-of-00001.arrow"]
    assert (target / "notes" / "a.txt").read_text() == "mine"
    assert os.readlink(target / "link") == "notes/a.txt"
    assert os.listdir(tmp_path) == ["half"]


def test_what_killed_processes_left_is_removed_whatever_the_clock_says(tmp_path):
    for name in (".half.1.tmp", ".half.2.tmp", ".half.3.tmp", ".other.1.tmp"):
        (tmp_path / name).mkdir()
    for name, away in ((".half.1.tmp", 2 * 24 * 3600), (".half.2.tmp", -2 * 24 * 3600)):
        os.utime(tmp_path / name, (time.time() - away,) * 2)
    with io.held(tmp_path / ".half.2.tmp"):  # as a process does that writes it now
        prune(samples.scored(), keep=0.5).save_to_disk(tmp_path / "half")
    assert sorted(os.listdir(tmp_path)) == [".half.2.tmp", ".other.1.tmp", "half"]


def test_directory_that_was_moved_away_by_a_killed_process_comes_back(tmp_path):
    prune(samples.scored(), keep=0.5).save_to_disk(tmp_path / "half")
    before = contents(tmp_path / "half")
    (tmp_path / "half").rename(tmp_path / ".half.1.old")
    save._remove_remains(tmp_path / "half")
    assert contents(tmp_path / "half") == before
    assert os.listdir(tmp_path) == ["half"]


def test_directories_are_replaced_where_they_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "_exchange", lambda one, other: False)
    target = tmp_path / "half"
    for keep in (0.5, 0.25):
        prune(samples.scored(), keep=keep).save_to_disk(target)
    assert len(replay(str(target), source=samples.plain())) == 15
    assert os.listdir(tmp_path) == ["half"]


def test_rows_do_not_replace_themselves(tmp_path):
    scored = samples.scored()
    scored.save_to_disk(tmp_path / "scored")
    before = contents(tmp_path)
    with pytest.raises(PermissionError, match="save to another directory"):
        prune(load_from_disk(str(tmp_path / "scored")), keep=0.5).save_to_disk(tmp_path / "scored")
    assert contents(tmp_path) == before


def test_directory_is_named_as_users_name_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    prune(samples.scored(), keep=0.5).save_to_disk("link")
    assert (tmp_path / "link").is_symlink()
    assert len(load_from_disk("real")) == 30
    prune(samples.scored(), keep=0.5).save_to_disk("memory://saved")
    assert len(load_from_disk("memory://saved")) == 30
