"""Where a trajectory's files lie."""

from __future__ import annotations

import re
from pathlib import Path

MOST_PROCESSES = 99_999
"""As many as the names of files tell apart."""
MANIFEST = "manifest.json"
LEDGER = "ledger"
STATISTICS_DIRECTORY = "statistics"
SNAPSHOTS = "snapshots"

_PART = re.compile(r"rank-([0-9]{5})-part-([0-9]{3,9})\.jsonl")
_SNAPSHOT = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,15})\.safetensors")


def part_path(root: Path, rank: int, part: int, directory: str = LEDGER) -> Path:
    return root / directory / f"rank-{rank:05d}-part-{part:03d}.jsonl"


def snapshot_path(root: Path, step: int) -> Path:
    return root / SNAPSHOTS / f"step-{step:08d}.safetensors"


def part_paths(root: Path, directory: str = LEDGER) -> dict[tuple[int, int], Path]:
    """Files of the ledger, or of the statistics next to it, by (rank, part)."""
    found = {}
    for path in sorted((root / directory).glob("*.jsonl")):
        if match := _PART.fullmatch(path.name):
            found[int(match[1]), int(match[2])] = path
    return found


def all_parts(root: Path) -> list[Path]:
    """Files of the ledger and of the statistics next to it, in order."""
    return [path for directory in (LEDGER, STATISTICS_DIRECTORY) for path in part_paths(root, directory).values()]


def snapshot_paths(root: Path) -> dict[int, Path]:
    """Snapshot files by step, in order."""
    found = {}
    for path in (root / SNAPSHOTS).glob("*.safetensors"):
        if match := _SNAPSHOT.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))
