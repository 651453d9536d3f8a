"""Sketches on disk: taken up after a kill, kept while in use, removed when superseded."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hf_prune.influence.cache_eviction import in_use, remove_unused
from tests.influence.runs import mlp


def forked(work: Callable[[], None]) -> int:
    """Runs `work` in a child process; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


@contextmanager
def another_at_work_with(directory: Path) -> Iterator[None]:
    """A child process that is at work with `directory`, and is killed in the end."""
    ready, tell = os.pipe()

    def work():
        with in_use(directory):
            os.write(tell, b".")
            signal.pause()

    child = forked(work)
    try:
        os.read(ready, 1)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_scoring_that_was_killed_in_the_middle_goes_on_where_it_stopped(tmp_path: Path):
    run = mlp(tmp_path)
    rename, written = os.replace, []

    def replace(source, target):
        """Kills the process just before its second file of sketches is there."""
        if Path(target).name.startswith("steps-"):
            written.append(target)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    def work():
        os.replace = replace
        run.score("projected", "expected")

    _, status = os.waitpid(forked(work), 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    (sketches,) = (run.path / "scores").glob("work-*")
    (file,) = sketches.glob("steps-*")
    assert list(sketches.glob(".*.tmp"))
    before = file.stat().st_mtime_ns
    resumed = run.score("projected", "expected")
    assert file.stat().st_mtime_ns == before
    assert len(list(sketches.glob("steps-*"))) > 1
    assert all(file.suffix in (".json", ".safetensors") for file in sketches.iterdir())  # no remains of the killed one
    shutil.rmtree(run.path / "scores")
    assert np.array_equal(run.score("projected", "expected"), resumed)


def test_superseded_sketches_are_removed_unless_a_process_is_at_work_with_them(tmp_path: Path):
    run = mlp(tmp_path, num_train_epochs=2)

    def score(column: str) -> set[Path]:
        run.score("projected", rows=run.rows.add_column(column, [0] * 40), directions=2)
        return set((run.path / "scores").glob("work-*"))

    (first,) = score("first")
    with another_at_work_with(first):
        both = score("second")
        assert first in both
        assert len(both) == 2
    (third,) = score("third")
    assert third not in both


def test_files_of_a_directory_that_another_process_reads_stay(tmp_path: Path):
    work = tmp_path / "work-0"
    work.mkdir()
    (work / "effects-0").touch()
    with another_at_work_with(work):
        remove_unused(work, "effects-*")
        assert (work / "effects-0").exists()
    (work / "gn_scale.json").touch()
    remove_unused(work, "effects-*")
    assert [file.name for file in work.iterdir()] == ["gn_scale.json"]
    remove_unused(work, "*")
    assert not work.exists()
    remove_unused(work, "*")  # once more does no harm
