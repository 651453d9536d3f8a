"""Snapshots: the trainable parameters and the optimizer's second moment at one step, as flat vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from hf_prune._core.reading import one_line
from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.manifest import RECORD, Manifest
from hf_prune.trajectory.tensor_files import read_shapes, read_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARAMETERS = "parameters"
SECOND_MOMENT = "second_moment"
SAMPLES = "samples"

# Entries of a parameter that is not recorded.
_ENTRIES = 4


@dataclass(frozen=True)
class Snapshot:
    """
    One snapshot in memory.

    Args:
        step (`int`): Optimizer steps made.
        parameters (`torch.Tensor`): Shape (p,), float32.
        second_moment (`torch.Tensor`, *optional*): Shape (p,), float32; `None` for an optimizer without one.
    """

    step: int
    parameters: torch.Tensor
    second_moment: torch.Tensor | None


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes of contiguous CPU tensors."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def samples_of(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Four entries of each tensor, evenly spread, float32: a fingerprint that tells rounding from other values."""
    entries = [_entries(tensor.detach()) for tensor in tensors if tensor.numel()]
    return torch.cat(entries) if entries else torch.empty(0)


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    places = [tensor.numel() * (2 * k + 1) // (2 * _ENTRIES) for k in range(_ENTRIES)]
    return tensor.reshape(-1)[places].float()


@dataclass(frozen=True)
class SnapshotHeader:
    """
    What a snapshot says of itself.

    Args:
        sha256 (`str`): Digest of its tensors.
        samples (`tuple[float, ...]`): Entries of the parameters that are not recorded, as `samples_of` takes them.
    """

    sha256: str
    samples: tuple[float, ...]


class SavedSnapshot(Protocol):
    """A snapshot on disk, in one file or in several."""

    def header(self) -> SnapshotHeader:
        """Reads and checks what it says of itself: it must be of this step and run, and of the recorded parameters."""

    def read(self) -> Snapshot:
        """Reads it, and checks that its bytes are those that were written."""


@dataclass(frozen=True)
class WholeSnapshot:
    """
    A snapshot in one file.

    Args:
        path (`Path`): The file.
        step (`int`): Optimizer steps made.
        manifest (`Manifest`): The run's.
    """

    path: Path
    step: int
    manifest: Manifest

    def header(self) -> SnapshotHeader:
        shapes, metadata = shapes_in(self.path, self.step, self.manifest.run_id)
        if PARAMETERS not in shapes or not shapes.keys() <= {PARAMETERS, SECOND_MOMENT}:
            raise not_a_snapshot(self.path)
        for name, shape in shapes.items():
            if shape != [self.manifest.n_parameters]:
                raise TrajectoryError(
                    f"Snapshot {self.path.name} holds {name} of shape {shape} where the manifest names "
                    f"{self.manifest.n_parameters} parameters: {RECORD.mend}."
                )
        return SnapshotHeader(metadata.get("sha256", ""), samples_in(self.path, metadata))

    def read(self) -> Snapshot:
        tensors, metadata = tensors_in(self.path)
        if PARAMETERS not in tensors or tensors_digest(tensors) != metadata.get("sha256"):
            raise damaged(self.path)
        moment = tensors.get(SECOND_MOMENT)
        return Snapshot(self.step, tensors[PARAMETERS].float(), None if moment is None else moment.float())


def shapes_in(path: Path, step: int, run_id: str) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shapes of the tensors in a snapshot's file, and its metadata, if it is of this step and run."""
    try:
        shapes, metadata = read_shapes(RECORD, path)
    except FileNotFoundError as error:
        raise _removed(path) from error
    if metadata.get("run_id") != run_id:
        raise TrajectoryError(
            f"Snapshot {path.name} belongs to run {one_line(metadata.get('run_id'))}, the manifest to run "
            f"{one_line(run_id)}: files of two runs were mixed; take the snapshots from the place where the manifest "
            "was written."
        )
    if metadata.get("step") != str(step):
        raise TrajectoryError(
            f"Snapshot {path.name} was taken at step {one_line(metadata.get('step'))}: give it its own name again."
        )
    return shapes, metadata


def samples_in(path: Path, metadata: dict[str, str]) -> tuple[float, ...]:
    return RECORD.line(metadata.get(SAMPLES, "[]").encode(), tuple[float, ...], f"{path.name}, {SAMPLES},")


def tensors_in(path: Path, wanted: Container[str] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors in a snapshot's file, all or the wanted ones alone, and its metadata."""
    try:
        tensors, metadata = read_tensors(RECORD, path, wanted)
    except FileNotFoundError as error:
        raise _removed(path) from error
    if any(tensor.dtype not in DTYPES.values() for tensor in tensors.values()):
        raise TrajectoryError(f"Snapshot {path.name} holds numbers of another type: {RECORD.mend}.")
    return tensors, metadata


def not_a_snapshot(path: Path) -> TrajectoryError:
    return TrajectoryError(f"Snapshot {path.name} does not hold what a snapshot does: {RECORD.mend}.")


def damaged(path: Path) -> TrajectoryError:
    return TrajectoryError(f"Snapshot {path.name} is damaged (its digest differs): {RECORD.mend}.")


def _removed(path: Path) -> TrajectoryError:
    return TrajectoryError(
        f"Snapshot {path.name} is not there any more, because the run went on and its window with it: open the record "
        "again."
    )
