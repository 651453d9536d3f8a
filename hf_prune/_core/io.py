"""Files that are there whole or not at all, however the process ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp"


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
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


def json_made_once(path: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file `path` holds; where it is missing, what `make` returns is written to it first."""
    if not path.exists():
        content = json.dumps(make()).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    return json.loads(path.read_text(encoding="utf-8"))


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
