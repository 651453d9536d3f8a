"""What lies on disks which the main process does not see, brought to it when training ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_prune._core.io import write_atomically
from hf_prune._core.processes import Processes
from hf_prune.trajectory import files

_CHUNK = 16 * 2**20


def gather_parts(root: Path, apart: Sequence[int], processes: Processes) -> None:
    """
    Copies the parts of ledger, statistics and snapshots on other disks into the main process's directory. All
    processes call this.

    Args:
        root (`Path`): The trajectory's directory.
        apart (`Sequence[int]`): Of each disk that the main process does not see, the first process that does.
        processes (`Processes`): Those of the run.

    Raises:
        `OSError`: where a part could not be read or written, in the process that failed.
    """
    failure = None
    for source in apart:
        names = processes.broadcast([str(path.relative_to(root)) for path in files.all_parts(root)], source)
        for name in names:
            try:
                if processes.rank == source:
                    processes.give(_chunks(root / name))
                elif processes.rank == 0:
                    _receive(root / name, processes.take(source))
            except OSError as error:
                failure = failure or error  # the others go on, and wait for this process
    if failure is not None:
        raise failure


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _receive(path: Path, chunks: Iterator[bytes]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for chunk in chunks:
                file.write(chunk)

    try:
        write_atomically(path, write)
    except OSError:
        for _ in chunks:
            pass  # the process that sends goes on to the end
        raise
