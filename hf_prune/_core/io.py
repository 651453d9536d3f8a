"""Files that are there whole or not at all, however the process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

_TEMPORARY, _WHOLE = ".tmp", ".whole"
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""A full disk, and a place that may not be written to."""


@contextmanager
def writing(what: str, directory: str | os.PathLike[str]) -> Iterator[None]:
    """
    Says in one sentence where the disk is full or the directory may not be written to.

    Args:
        what (`str`): What is written, such as `"The selection"`.
        directory (`str` or `os.PathLike`): Where.

    Raises:
        `OSError`: the sentence; a `PermissionError` where the directory may not be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        kind = PermissionError if isinstance(error, PermissionError) or error.errno == errno.EROFS else OSError
        raise kind(
            f"{what} cannot be written to {directory} ({os.strerror(error.errno)}): free disk space, or choose a "
            "directory that you may write to, and call this again."
        ) from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """
    Lets `write` make a file under a temporary name, then renames it, so that `path` is never half a file.

    Several processes may write the same path at once; one of them wins. What is written survives a power cut.

    Args:
        path (`Path`):
            The final place; its directory exists.
        write (`Callable[[Path], Any]`):
            Writes the whole file at the path that it is given.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}{_TEMPORARY}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to a file in a directory that exists, as [`write_atomically`] does."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_together(directory: Path, contents: Mapping[str, bytes]) -> None:
    """
    Writes files that belong together into a directory that exists: who reads them where [`together`] says finds all
    of the old ones or all of the new ones, however the process ends. Other files stay as they are.

    They are made in a directory of their own, whose new name makes them count, and copied to their places from there.
    """
    with held(directory):
        for remains in directory.glob(f"{_WHOLE}.*{_TEMPORARY}"):
            shutil.rmtree(remains, ignore_errors=True)
        _put_in_place(directory)
        staged = _aside(directory)
        try:
            staged.mkdir()
            for name, content in contents.items():
                write_bytes(staged / name, content)
            staged.rename(directory / _WHOLE)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        sync_directory(directory)
        _put_in_place(directory)


def together(directory: Path) -> Path:
    """Where to read what [`write_together`] wrote into `directory`: there, or in a directory that it has to copy."""
    whole = directory / _WHOLE
    return whole if whole.is_dir() else directory


def _put_in_place(directory: Path) -> None:
    whole = directory / _WHOLE
    if not whole.is_dir():
        return
    for file in whole.iterdir():
        write_bytes(directory / file.name, file.read_bytes())
    aside = _aside(directory)
    whole.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    remove_temporaries(directory)


def _aside(directory: Path) -> Path:
    return directory / f"{_WHOLE}.{uuid4().hex}{_TEMPORARY}"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """
    One process at a time runs the block for this directory; the operating system ends that with the process. Where the
    file system has no such locks, the block runs all the same.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_held(directory: Path) -> bool:
    """Whether a process is in [`held`] for this directory, or may be."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def sync_directory(directory: Path) -> None:
    """Makes renames and new files in a directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(directory: Path) -> None:
    """Removes what [`write_atomically`] left in a directory where its process was killed."""
    for path in directory.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)
