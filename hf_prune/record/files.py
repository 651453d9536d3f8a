"""Where a trajectory's files lie, and how a file is put there whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
LEDGER = "ledger"
STATISTICS_DIRECTORY = "statistics"
SNAPSHOTS = "snapshots"

_PART = re.compile(r"rank-(\d{5})-part-(\d{3,})\.jsonl")
_SNAPSHOT = re.compile(r"step-(\d{8,})\.safetensors")
_TEMPORARY = ".tmp"


def part_path(root: Path, rank: int, part: int, directory: str = LEDGER) -> Path:
    return root / directory / f"rank-{rank:05d}-part-{part:03d}.jsonl"


def snapshot_path(root: Path, step: int) -> Path:
    return root / SNAPSHOTS / f"step-{step:08d}.safetensors"


def part_paths(root: Path, directory: str = LEDGER) -> dict[tuple[int, int], Path]:
    """Files of the ledger, or of the statistics beside it, by (rank, part)."""
    found = {}
    for path in sorted((root / directory).glob("*.jsonl")):
        if match := _PART.fullmatch(path.name):
            found[int(match[1]), int(match[2])] = path
    return found


def snapshot_paths(root: Path) -> dict[int, Path]:
    """Snapshot files by step, in order."""
    found = {}
    for path in (root / SNAPSHOTS).glob("*.safetensors"):
        if match := _SNAPSHOT.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """
    Lets `write` make a file under a temporary name, then renames it, so that `path` is never half a file.

    Args:
        path (`Path`):
            The final place.
        write (`Callable[[Path], None]`):
            Writes the whole file at the path that it is given.
    """
    # two processes may make the same file at once
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def json_made_once(path: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file `path` holds; where it is missing, what `make` returns is written to it first."""
    if not path.exists():
        text = json.dumps(make())
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(part: Path) -> None:
            part.write_text(text)

        write_atomically(path, write)
    return json.loads(path.read_text())


def sync_directory(directory: Path) -> None:
    """Makes renames and new files in a directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(root: Path) -> None:
    """Removes what writes that were killed left behind."""
    for directory in (root, root / SNAPSHOTS):
        for path in directory.glob(f"*{_TEMPORARY}"):
            path.unlink()


def remove_record(root: Path) -> None:
    """Removes a record, and nothing else that lies in its directory."""
    parts = [*part_paths(root).values(), *part_paths(root, STATISTICS_DIRECTORY).values()]
    for path in [*parts, *snapshot_paths(root).values(), root / MANIFEST]:
        path.unlink(missing_ok=True)
    remove_temporaries(root)
