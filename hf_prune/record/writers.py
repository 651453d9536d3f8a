"""The open files of a record on one process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hf_prune.record import snapshot_writer
from hf_prune.record.ledger_writer import LedgerWriter
from hf_prune.record.optimizer import RecordedOptimizer
from hf_prune.record.snapshot_writer import SnapshotWriter, go_through, snapshot_bytes
from hf_prune.trajectory.files import STATISTICS_DIRECTORY, part_path
from hf_prune.trajectory.ledger import LedgerRow
from hf_prune.trajectory.manifest import Manifest
from hf_prune.trajectory.visits import StatisticsRow


def writes_parts(manifest: Manifest, optimizer: RecordedOptimizer) -> bool:
    """Whether each process writes its own part of a snapshot, for the main one to need no memory for a whole one."""
    size = snapshot_bytes(manifest.n_parameters, manifest.snapshot_dtype, optimizer.has_second_moment)
    return optimizer.is_sharded and size > snapshot_writer.LARGEST_GATHERED


@dataclass
class Writers:
    """
    Args:
        ledger (`LedgerWriter`): This process's part of the ledger.
        statistics (`LedgerWriter`, *optional*): The part next to it, where statistics of rows are recorded.
        snapshots (`SnapshotWriter`, *optional*): The main process's, or each one's where snapshots are in parts.
        in_parts (`bool`): Whether they are.
    """

    ledger: LedgerWriter
    statistics: LedgerWriter | None
    snapshots: SnapshotWriter | None
    in_parts: bool

    @classmethod
    def open(
        cls, root: Path, manifest: Manifest, rank: int, part: int, optimizer: RecordedOptimizer, undo: ExitStack
    ) -> Writers:
        """
        Opens the files.

        Args:
            root (`Path`): The trajectory's directory.
            manifest (`Manifest`): The run's.
            rank (`int`): This process; 0 is the main one.
            part (`int`): The part of the ledger that this attempt writes.
            optimizer (`RecordedOptimizer`): The run's.
            undo (`ExitStack`): Gets what closes them.
        """
        header = {"run_id": manifest.run_id, "rank": str(rank), "part": str(part)}
        ledger = LedgerWriter(part_path(root, rank, part), header)
        undo.callback(ledger.close)
        statistics = snapshots = None
        if manifest.row_statistics:
            statistics = LedgerWriter(part_path(root, rank, part, STATISTICS_DIRECTORY), header)
            undo.callback(statistics.close)
        own = optimizer.own_pieces(rank) if writes_parts(manifest, optimizer) else None
        if rank == 0 or own is not None:
            size = manifest.n_parameters if own is None else own.size
            snapshots = SnapshotWriter(root, manifest.run_id, size, manifest.snapshot_dtype, own)
            undo.callback(snapshots.close)
        return cls(ledger, statistics, snapshots, in_parts=own is not None)

    def write(self, row: LedgerRow, statistics: StatisticsRow | None) -> None:
        """Writes a step's row and, before it, its statistics, so that every step in the ledger has its statistics."""
        if self.statistics is not None and statistics is not None:
            self.statistics.write(statistics)
        self.ledger.write(row)

    def take_snapshot(self, step: int, optimizer: RecordedOptimizer, superseded: Sequence[int]) -> None:
        """
        Copies the parameters as they are after `step` optimizer steps, and lets older snapshots go. All processes call
        this, once they agreed that the last one is on disk: each writes its own part, or the main one writes and the
        others give their parts of what is sharded.
        """
        samples, vectors = optimizer.samples(), optimizer.own_vectors() if self.in_parts else optimizer.vectors()
        if self.snapshots is None:
            go_through(vectors)
        else:
            self.snapshots.take(step, vectors, samples, superseded)

    def remove_superseded(self) -> None:
        """Removes what the last snapshot has superseded, once all processes have it on disk."""
        if self.snapshots is not None:
            self.snapshots.remove_superseded()

    def wait(self) -> None:
        """Waits for the last snapshot to be on disk, and raises its error if it could not be written."""
        if self.snapshots is not None:
            self.snapshots.wait()

    def check(self) -> None:
        """Raises the error of a snapshot that could not be written."""
        if self.snapshots is not None:
            self.snapshots.check()

    def flush(self) -> None:
        """Everything that was handed over is on disk when this returns."""
        if self.statistics is not None:
            self.statistics.sync()
        self.ledger.sync()
        self.wait()
