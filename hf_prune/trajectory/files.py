"""Where a trajectory's files lie."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

MOST_PROCESSES = 99_999
"""As many as the names of files tell apart."""
MANIFEST = "manifest.json"
LEDGER = "ledger"
STATISTICS_DIRECTORY = "statistics"
SNAPSHOTS = "snapshots"
WHOLE = -1
"""Stands for the process where a file holds a whole snapshot."""

_PART = re.compile(r"rank-([0-9]{5})-part-([0-9]{3,9})\.jsonl")
_SNAPSHOT = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,15})(?:-rank-([0-9]{5}))?\.safetensors")


def part_path(root: Path, rank: int, part: int, directory: str = LEDGER) -> Path:
    return root / directory / f"rank-{rank:05d}-part-{part:03d}.jsonl"


def snapshot_path(root: Path, step: int, rank: int = WHOLE) -> Path:
    """The file of a snapshot, or of what one process wrote of it."""
    part = "" if rank == WHOLE else f"-rank-{rank:05d}"
    return root / SNAPSHOTS / f"step-{step:08d}{part}.safetensors"


def part_paths(root: Path, directory: str = LEDGER) -> dict[tuple[int, int], Path]:
    """Files of the ledger, or of the statistics next to it, by (rank, part)."""
    found = {}
    for path in sorted((root / directory).glob("*.jsonl")):
        if match := _PART.fullmatch(path.name):
            found[int(match[1]), int(match[2])] = path
    return found


def all_parts(root: Path) -> list[Path]:
    """Files that single processes wrote: of the ledger, the statistics next to it and snapshots in parts, in order."""
    lines = [path for directory in (LEDGER, STATISTICS_DIRECTORY) for path in part_paths(root, directory).values()]
    snapshots = snapshot_paths(root).values()
    return lines + [path for files in snapshots for rank, path in sorted(files.items()) if rank != WHOLE]


def snapshot_paths(root: Path) -> dict[int, dict[int, Path]]:
    """Snapshot files by step, in order, and by the process that wrote a part, `WHOLE` where it is no part."""
    found: dict[int, dict[int, Path]] = {}
    for path in (root / SNAPSHOTS).glob("*.safetensors"):
        if match := _SNAPSHOT.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[WHOLE if match[2] is None else int(match[2])] = path
    return dict(sorted(found.items()))


def is_whole(ranks: Collection[int], world_size: int) -> bool:
    """Whether these processes wrote all of a snapshot."""
    return WHOLE in ranks or set(range(world_size)) <= set(ranks)
