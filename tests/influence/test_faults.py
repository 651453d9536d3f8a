"""Full disks, places that may not be written to, several scorers, clocks, runs that diverge: each for real."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_prune.influence.queries import Queries
from hf_prune.model.objective import Objective
from tests.forks import run_module
from tests.influence import runs
from tests.influence.faults import PAIRS
from tests.influence.killed import damaged
from tests.record.test_full_disk import files_end_at


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(run_module("tests.influence.faults", tmp_path_factory.mktemp("faults")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return runs.mlp(tmp_path_factory.mktemp("run"), hidden=512)


@pytest.mark.parametrize("engines", list(PAIRS))
def test_two_scorers_that_know_nothing_of_each_other_do_not_disturb_each_other(engines, told):
    found = told["at once"][engines]
    assert found["ends"] == [0, 0]
    assert found["damaged"] == []
    first, second = engines.split("-")
    assert found["values"][0] == told["at once"][f"{first}-{first}"]["values"][0]
    assert found["values"][1] == told["at once"][f"{second}-{second}"]["values"][0]
    assert [name for name in found["names"] if "/steps-" in name] or "projected" not in engines
    assert not [name for name in found["names"] if "/effects-" in name and "-steps-" in name]


def test_times_of_files_mean_nothing(told):
    found = dict(told["clocks"])
    assert found.pop("values") == told["at once"]["dense-dense"]["values"][0]
    assert found == {"status": 0, "same": True, "kept": True}


def test_places_that_may_not_be_written_to_are_named(told):
    if told["read-only"] is None:
        pytest.skip("only root can become a user who may not write")
    words = told["read-only"]
    assert words.pop("scored") == ""  # complete scores can be read
    for name, what in (("scoring", "Scores"), ("recording", "The record"), ("selection", "The selection")):
        assert f": {what}" in words[name]
        assert "cannot be written to" in words[name]
        assert "a directory that you may write to" in words[name]
    assert "save to a new directory" in words["rows"]


def test_missing_ledger_of_a_process_is_named(told):
    for words in told["missing rank"].values():
        assert words.startswith("TrajectoryError: The ledger of process 1 of 2 is missing in ")


def test_run_that_diverged_is_recorded_with_a_warning_and_refused_when_scored(told):
    words = told["diverged"]
    assert words["recording"] == ""
    assert words["warnings"].count("training diverges") == 1
    for engine in ("dense", "projected"):
        assert words[engine].startswith(
            "UnsupportedError: The parameter 'net.0.weight' of the model is NaN or infinite"
        )
        assert "since the gradient of step" in words[engine]


def test_room_is_looked_for_before_sketching(run, tmp_path, monkeypatch):
    engine = run.projected(tmp_path / "work")
    sizes = engine.window.missing_bytes(engine.segmented.store)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch, engine.segmented.cache.in_use():
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * sum(sizes) - 1))
        engine.prepare()
        assert not engine.segmented.keeps
        assert engine.segmented.store.missing() == engine.segmented.store.shards
        held_out = engine.replay.rows.of(run.held_out)
        queries = engine.encode(Queries(2, "outputs", 0, held_out, held_out))
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=max(sizes)))
        words = (
            r"Sketching the steps between two snapshots takes about .* \(([\d,]+) bytes\) .* more snapshots_per_epoch"
        )
        with pytest.raises(OSError, match=words) as raised:
            engine.visits(queries)
        found = re.search(words, str(raised.value))
        assert found is not None
        needed = int(found[1].replace(",", ""))
        assert max(sizes) < needed < 2 * max(sizes)
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
        engine.visits(queries)
    kept = run.projected(tmp_path / "kept")
    with monkeypatch.context() as patch, kept.segmented.cache.in_use():
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * sum(sizes)))
        kept.prepare()
        assert kept.segmented.keeps
    written = sum(file.stat().st_size for file in (tmp_path / "kept").glob("steps-*"))
    assert abs(written - sum(sizes)) < 0.2 * written
    assert sum(kept.window.missing_bytes(kept.segmented.store)) == 0


def test_a_window_is_sketched_where_memory_holds_few_rows_at_once(run, tmp_path, monkeypatch):
    apply, free = Objective.apply, run.projected(tmp_path / "free")
    with free.segmented.store.cache.in_use():
        free.prepare()

    def limited(self: Objective, values: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(next(iter(inputs.values()))) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return apply(self, values, inputs)

    monkeypatch.setattr(Objective, "apply", limited)
    tight = run.projected(tmp_path / "tight")
    with tight.segmented.store.cache.in_use():
        tight.prepare()
    monkeypatch.undo()
    layouts = [json.loads((tmp_path / name / "layout.json").read_text()) for name in ("free", "tight")]
    np.testing.assert_allclose(layouts[1], layouts[0], rtol=0.2)  # signs are drawn part by part
    assert tight.segmented.store.missing() == []


@pytest.mark.parametrize(
    ("engine", "limit"), [("dense", 10), ("dense", 1000), ("projected", 1000), ("projected", 2500)]
)
def test_full_disk_ends_scoring_with_a_sentence_and_what_is_finished_serves_the_next_one(engine, limit, run):
    scores = Path(run.path) / "scores"
    shutil.rmtree(scores, ignore_errors=True)
    with files_end_at(limit), pytest.raises(OSError, match=r"cannot be written to .* free disk space"):
        run.score(engine)
    assert damaged(scores) == []
    found = run.score(engine)
    assert damaged(scores) == []
    assert not [file for file in scores.rglob("*") if file.name.startswith(("tmp", "in-use")) or ".tmp" in file.name]
    shutil.rmtree(scores)
    assert np.array_equal(found, run.score(engine))
