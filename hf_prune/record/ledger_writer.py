"""Writing the ledger: one JSON line for each optimizer step and process, appended as training goes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_prune.trajectory.ledger import LedgerRow
from hf_prune.trajectory.visits import StatisticsRow


class LedgerWriter:
    """
    Appends rows to a file of JSON lines. Each row is one line and one `write`, so a killed process loses at most the
    row that it was writing. JSON, because a line takes a third of the time that an Arrow record batch of one row does,
    and this runs in every training step.

    Args:
        path (`Path`): A file that does not exist yet.
        header (`dict[str, str]`): Its first line: the run's id, rank and part.
    """

    def __init__(self, path: Path, header: dict[str, str]):
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - open as long as the run
        self._append(_line(header))

    def write(self, row: LedgerRow | StatisticsRow) -> None:
        self._append(_line(vars(row)))

    def sync(self) -> None:
        """Makes the rows written so far survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _append(self, line: bytes) -> None:
        written = self._file.write(line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes of a ledger row were written (is the disk full?)")


def row_bytes(row: LedgerRow) -> int:
    """Disk space of a row."""
    return len(_line(vars(row)))


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
