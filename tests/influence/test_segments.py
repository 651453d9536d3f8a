"""A window whose sketches are too many for the disk: the same scores, segment by segment."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_prune import Trajectory, attribute
from hf_prune.errors import TrajectoryError
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.queries import Queries
from hf_prune.influence.sketch import segments
from hf_prune.influence.sketch.window_pass import WindowPass
from tests import toys
from tests.influence import runs
from tests.influence.runs import Run, distance
from tests.influence.test_removed_tokens import expected_run

# The same visits in batches of other sizes may differ by a rounding, which is now and then one of a byte.
ROUNDING = 1e-5


@pytest.fixture(scope="module", params=["whole epochs", "halves", "two classes"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Rows that were visited in every segment, in every other one, and with a curvature along the gradient."""
    directory = tmp_path_factory.mktemp("run")
    if request.param == "whole epochs":
        return runs.mlp(directory, learning_rate=3e-3, max_grad_norm=0.3)
    if request.param == "halves":
        return runs.mlp(directory, snapshots_per_epoch=2, window=0.4, max_grad_norm=0.3)
    rows, held_out = toys.vectors(40, classes=2, noise=3.0), toys.vectors(12, classes=2, seed=9)
    return runs.record(toys.Mlp(classes=2), rows, held_out, directory, num_train_epochs=3, snapshots_per_epoch=3)


def clear(run: Run) -> None:
    shutil.rmtree(run.path / "scores", ignore_errors=True)


def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "KEPT_SHARE", 0.0)


def both(run: Run, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What is found with the whole window's sketches and by segments, of which no sketches are left."""
    clear(run)
    whole = ask()
    assert list(run.path.rglob("*-0*.safetensors"))
    clear(run)
    with monkeypatch.context() as patch:
        small_disk(patch)
        found = ask()
    assert not list((run.path / "scores").rglob("*.safetensors"))
    return found, whole


@pytest.mark.parametrize("curvature", ["fisher", "gauss-newton"])
@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_scores_are_those_of_the_whole_window(run: Run, mode: str, curvature: str, monkeypatch: pytest.MonkeyPatch):
    found, whole = both(run, monkeypatch, lambda: run.score("projected", mode, curvature=curvature))
    assert distance(found, whole) < ROUNDING
    assert np.abs(whole).min(1).max() > 0


def test_candidates_and_rows_without_a_visit_score_as_with_the_whole_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = runs.mlp(tmp_path, rows=48, num_train_epochs=1, snapshots_per_epoch=3)
    found, whole = both(run, monkeypatch, lambda: run.score("projected", "expected"))
    assert distance(found, whole) < ROUNDING
    pool = toys.vectors(20, seed=4)
    found, whole = both(
        run, monkeypatch, lambda: run.score("projected", "expected", rows=pool, train_dataset=run.rows)
    )
    assert distance(found, whole) < ROUNDING


@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_tokens_and_rows_of_single_queries_are_those_of_the_whole_window(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = expected_run(tmp_path)
    settings = {"dataset": run.rows, "model": run.model, "data_collator": run.collator, "engine": "projected"}

    def ask() -> np.ndarray:
        found = attribute(run.path, run.held_out.select(range(2)), tokens="row", k=3, mode=mode, **settings)
        parts = [part for query in found.row_parts for _, part in sorted(query.items())]
        return np.concatenate([found.influence.ravel(), *parts])

    found, whole = both(run, monkeypatch, ask)
    assert distance(found, whole) < ROUNDING


def bytes_below(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


@pytest.mark.parametrize("snapshots_per_epoch", [1, 2])
def test_disk_holds_no_more_than_one_segment(
    snapshots_per_epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = runs.mlp(tmp_path, rows=96, hidden=512, snapshots_per_epoch=snapshots_per_epoch)
    settings: dict[str, Any] = {"directions": 1, "mode": "expected"}
    taken, write = [], SharedCache.write

    def watched(cache: SharedCache, name: str, tensors: dict[str, Any]) -> None:
        write(cache, name, tensors)
        taken.append(bytes_below(run.path / "scores"))

    monkeypatch.setattr(SharedCache, "write", watched)
    whole = run.score("projected", **settings)
    sizes = {file.name: file.stat().st_size for file in (run.path / "scores").rglob("steps-*")}
    store = run.projected(run.path / "none").segmented.store
    parts = [sum(sizes[store._name(shard)] for shard in own) for own in store.segments]
    assert sum(parts) == sum(sizes.values())
    clear(run)
    taken.clear()
    small_disk(monkeypatch)
    assert distance(run.score("projected", **settings), whole) < ROUNDING
    # Of two queries: the sweep's state, and the sums of the segments that it has passed.
    state = 2 * 4 * 2 * store.sketch.width * (1 + len(parts))
    assert max(parts) <= max(taken) < max(parts) + 1.05 * state
    assert max(taken) < sum(parts) / 2


class Stopped(Exception):  # noqa: N818
    """Ends a pass."""


@pytest.mark.parametrize("moment", [4, 7, 11, 19])
@pytest.mark.parametrize("mode", ["visits", "expected"])
def test_a_sweep_that_ended_early_does_at_most_a_segment_again(
    mode: str, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = runs.mlp(tmp_path, window=0.4, snapshots_per_epoch=2)
    marks = Trajectory.open(run.path).snapshot_steps
    longest = max(b - a for a, b in itertools.pairwise(marks))
    sketched, step = [0], WindowPass._step

    def watched(window: WindowPass, *arguments: Any) -> Any:
        sketched[0] += 1
        if sketched[0] == stop:
            raise Stopped
        return step(window, *arguments)

    monkeypatch.setattr(WindowPass, "_step", watched)
    stop = 0
    with monkeypatch.context() as patch:
        small_disk(patch)
        undisturbed = run.score("projected", mode)
        whole, sketched[0] = sketched[0], 0
        assert whole > 19 if mode == "expected" else whole == marks[-1] - marks[0]
        clear(run)
        stop = min(moment, whole - 1)
        with pytest.raises(Stopped):
            run.score("projected", mode)
    stop = 0
    assert np.array_equal(run.score("projected", mode), undisturbed)  # though the disk has room by now
    assert whole < sketched[0] <= whole + longest
    assert not list((run.path / "scores").rglob("*.safetensors"))


def test_a_sweep_of_other_queries_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = runs.mlp(tmp_path)
    small_disk(monkeypatch)
    engine = run.projected(tmp_path / "work")
    held_out = engine.replay.rows.of(run.held_out)
    few, many = (engine.encode(Queries(k, "outputs", 0, held_out, held_out)) for k in (2, 3))
    engine.prepare()
    engine.visits(few)
    with pytest.raises(TrajectoryError, match=r"is not of this scoring \(A has another form\): delete it"):
        engine.visits(many)
