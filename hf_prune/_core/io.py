"""Files that are there whole or not at all, however the process ends."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows, where directories cannot be opened either
    fcntl = None  # type: ignore[assignment]

TEMPORARY, _STAGED, _WHOLE = ".tmp", "whole", ".whole"
_REMAINS = re.compile(rf"\.(.+)\.[0-9a-f]{{32}}{re.escape(TEMPORARY)}")
"""Temporary names, with the name that was meant."""
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


def write_atomically(path: Path, write: Callable[[Path], Any], *, one_of_many: bool = False) -> None:
    """
    Lets `write` make a file in a directory of its own, then moves it, so that `path` is never half a file.

    Several processes may write the same path at once; one of them wins. What is written survives a power cut. What
    killed processes left of earlier writes of this path is removed.

    Args:
        path (`Path`):
            The final place; its directory exists.
        write (`Callable[[Path], Any]`):
            Writes the whole file at the path that it is given, and nothing outside of that directory.
        one_of_many (`bool`, *optional*, defaults to `False`):
            Leaves what killed processes left to who calls [`remove_temporaries`] once for the directory, which takes
            longer the more files there are: some 8 ms for 10,000.
    """
    if not one_of_many:
        remove_temporaries(path.parent, path.name)
    with _aside(path) as directory:
        write(directory / path.name)
        with open(directory / path.name, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(directory / path.name, path)
    sync_directory(path.parent)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """An empty directory next to `path`, held while the block runs, and removed at its end."""
    with ExitStack() as stack:
        yield _made_aside(path, stack)


def _made_aside(path: Path, stack: ExitStack) -> Path:
    directory = _aside_name(path)
    directory.mkdir()
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    with suppress(FileNotFoundError):
        stack.enter_context(held(directory))
    # another process may have taken it for remains before it was held
    return directory if directory.exists() else _made_aside(path, stack)


def _aside_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex}{TEMPORARY}")


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
        remove_temporaries(directory)
        _put_in_place(directory)
        with _aside(directory / _STAGED) as staged:
            for name, content in contents.items():
                write_bytes(staged / name, content)
            staged.rename(directory / _WHOLE)
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
    aside = _aside_name(directory / _STAGED)
    whole.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """
    One process at a time runs the block for this file or directory; the operating system ends that with the process.
    Where the system or the file system has no such locks, the block runs all the same.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_unless_held(path: Path) -> None:
    """Removes a file or a directory, unless a process is in [`held`] for it, or may be."""
    if fcntl is None:
        return
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        finally:
            os.close(handle)


def sync_directory(directory: Path) -> None:
    """Makes renames and new files in a directory survive a power cut, where the system can."""
    if fcntl is None:
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(directory: Path, name: str | None = None) -> None:
    """
    Removes what killed processes left of files that they wrote into a directory, but not what a process writes now.

    Args:
        directory (`Path`): One that may be missing.
        name (`str`, *optional*): Only of the file of this name.
    """
    with suppress(OSError):
        for path in directory.iterdir():
            found = _REMAINS.fullmatch(path.name)
            if found and name in (None, found[1]):
                remove_unless_held(path)
