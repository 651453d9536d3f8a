"""One record of what machines without a common disk recorded of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hf_prune._core.io import write_atomically, writing
from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.files import MANIFEST, all_parts
from hf_prune.trajectory.manifest import read_manifest
from hf_prune.trajectory.trajectory import Trajectory

_CHUNK = 2**20


def gather(record: str | os.PathLike[str], others: Sequence[str | os.PathLike[str]]) -> Trajectory:
    """
    Copies into a record what other machines kept of the same run: ledgers, and their parts of snapshots that are in
    parts. Training does so itself when it ends; this is for a run that was killed. Calling it again changes nothing.

    Args:
        record (`str` or `os.PathLike`):
            The main process's `output_dir`.
        others (`Sequence[str | os.PathLike]`):
            Those of the other machines, copied to this one.

    Returns:
        [`Trajectory`]: the record with all of it.

    Raises:
        [`TrajectoryError`]: if they are of different runs, or hold different files of one process.
        `OSError`: if there is no room.
    """
    root, places = Path(record), [Path(other) for other in others]
    run_id = read_manifest(root).run_id
    for place in places:
        if not all_parts(place):
            raise TrajectoryError(
                f"There is no ledger in {place}: pass the directory that TrajectoryCallback wrote to."
            )
        if (place / MANIFEST).exists() and read_manifest(place).run_id != run_id:
            raise TrajectoryError(f"{place} holds another run than {root}: gather directories of one run.")
    with writing("The record", root):
        for place in places:
            for source in all_parts(place):
                _copy(source, root / source.relative_to(place))
    return Trajectory.open(root)


def _copy(source: Path, target: Path) -> None:
    """Copies a part, unless the target has it, or more of it, already."""
    if target.exists():
        if not _begins_alike(source, target):
            raise TrajectoryError(f"{source} and {target} differ: gather directories of one run.")
        if target.stat().st_size >= source.stat().st_size:
            return
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, partial(shutil.copyfile, source))


def _begins_alike(one: Path, other: Path) -> bool:
    """Whether two files agree as far as both go."""
    left = min(one.stat().st_size, other.stat().st_size)
    with open(one, "rb") as a, open(other, "rb") as b:
        while left > 0:
            size = min(left, _CHUNK)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True
