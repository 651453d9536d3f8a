"""Where a trajectory's files lie."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"
LEDGER = "ledger"
STATISTICS_DIRECTORY = "statistics"
SNAPSHOTS = "snapshots"

_PART = re.compile(r"rank-(\d{5})-part-(\d{3,})\.jsonl")
_SNAPSHOT = re.compile(r"step-(\d{8,})\.safetensors")


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


def snapshot_paths(root: Path) -> dict[int, Path]:
    """Snapshot files by step, in order."""
    found = {}
    for path in (root / SNAPSHOTS).glob("*.safetensors"):
        if match := _SNAPSHOT.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))
