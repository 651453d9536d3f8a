"""Locks and evicts cached intermediates."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from hf_prune._core.io import remove_temporaries

# Directories of intermediates are named so.
PREFIX = "work-"
# What processes of a launch hand to each other for a moment.
SHARES = "shares-"
_MARKS = "in-use-*.lock"
# What `Dataset.map` writes columns to before they get their name.
_DATASETS_TEMPORARY = "tmp????????"


@contextmanager
def in_use(directory: Path) -> Iterator[None]:
    """
    Keeps [`remove_unused`] and [`remove_superseded`] of other processes away from `directory` while the block runs.

    A mark is a lock held by the operating system, which ends with its process however that ends.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mark = FileLock(directory / f"in-use-{uuid4().hex}.lock")
    with _one_at_a_time(directory.parent):
        directory.mkdir(exist_ok=True)  # removed since
        if not _used(directory):
            _remove_remains(directory)
        mark.acquire()
    try:
        yield
    finally:
        mark.release()
        Path(mark.lock_file).unlink(missing_ok=True)


def remove_superseded(kept: Path) -> None:
    """Removes the directories of intermediates other than `kept` that no process uses."""
    for directory in kept.parent.glob(f"{PREFIX}*"):
        if directory != kept and not directory.is_symlink():
            with _one_at_a_time(directory.parent):
                if directory.exists() and not _used(directory):
                    shutil.rmtree(directory)


def remove_unused(directory: Path, pattern: str) -> None:
    """Removes the files of `directory` that match, and itself when it is then empty, unless somebody uses it."""
    with _one_at_a_time(directory.parent):
        if not directory.exists() or _used(directory):
            return
        _remove_remains(directory)
        for file in directory.glob(pattern):
            file.unlink()
        if not any(directory.iterdir()):
            directory.rmdir()


def _one_at_a_time(parent: Path) -> FileLock:
    return FileLock(parent / ".work.lock")


def _used(directory: Path) -> bool:
    return any(not _free(file) for file in directory.glob(_MARKS))


def _free(mark: Path) -> bool:
    try:
        with FileLock(mark, timeout=0):
            return True
    except Timeout:
        return False


def _remove_remains(directory: Path) -> None:
    """What killed processes left."""
    for pattern in (_MARKS, _DATASETS_TEMPORARY, f"{SHARES}*"):
        for file in directory.glob(pattern):
            file.unlink(missing_ok=True)
    remove_temporaries(directory)
