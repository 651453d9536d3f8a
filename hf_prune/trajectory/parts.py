"""Snapshots in parts: each process wrote the pieces of the parameters that it held (FSDP2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_prune._core.reading import Count
from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.files import WHOLE, is_whole, snapshot_paths
from hf_prune.trajectory.manifest import RECORD, Manifest, Parameter
from hf_prune.trajectory.snapshots import (
    PARAMETERS,
    SECOND_MOMENT,
    SavedSnapshot,
    Snapshot,
    SnapshotHeader,
    WholeSnapshot,
    damaged,
    not_a_snapshot,
    samples_in,
    shapes_in,
    tensors_in,
)

RANK, PIECES = "rank", "pieces"


@dataclass(frozen=True)
class Piece:
    """
    Where a tensor of a part belongs.

    Args:
        dim (`int`): The dimension that its parameter is cut along.
        start (`int`): Where the piece begins there.
        sha256 (`str`): Digest of all that, see [`piece_digest`].
    """

    dim: Count
    start: Count
    sha256: str


def piece_name(kind: str, parameter: str) -> str:
    """The name of a piece in its file."""
    return f"{kind}.{parameter}"


def piece_digest(name: str, dim: int, start: int, tensor: torch.Tensor) -> str:
    """SHA-256 over a piece's name, place and bytes; the tensor is contiguous and on the CPU."""
    hasher = hashlib.sha256(f"{name} {dim} {start} ".encode())
    hasher.update(tensor.view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def saved_snapshots(root: Path, manifest: Manifest) -> dict[int, SavedSnapshot]:
    """
    The snapshots of a record, by step and in order. Those that some process did not finish do not count while a run
    goes on, or where it was killed.

    Raises:
        [`TrajectoryError`]: if a part of a complete run's snapshot is missing.
    """
    found: dict[int, SavedSnapshot] = {}
    for step, paths in snapshot_paths(root).items():
        if WHOLE in paths:
            found[step] = WholeSnapshot(paths[WHOLE], step, manifest)
        elif is_whole(paths, manifest.world_size):
            found[step] = SnapshotParts([paths[rank] for rank in range(manifest.world_size)], step, manifest)
        elif manifest.complete:
            missing = next(rank for rank in range(manifest.world_size) if rank not in paths)
            raise TrajectoryError(
                f"The snapshot of step {step} lacks the part of process {missing} of {manifest.world_size} in {root}: "
                "gather what other machines hold of it (hf-prune gather), or copy the whole directory again."
            )
    return found


@dataclass(frozen=True)
class _Found:
    """A piece with the shape that it has in its file."""

    place: Piece
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Layout:
    """
    What the files of a snapshot say of themselves.

    Args:
        kinds (`list[str]`): `"parameters"` and, where it is recorded, `"second_moment"`.
        pieces (`dict[str, dict[Path, _Found]]`): For each tensor of these, the files that have a piece of it.
        samples (`tuple[float, ...]`): Entries of the parameters that are not recorded.
    """

    kinds: list[str]
    pieces: dict[str, dict[Path, _Found]]
    samples: tuple[float, ...]


@dataclass(frozen=True)
class SnapshotParts:
    """
    A snapshot in one file a process.

    Args:
        paths (`Sequence[Path]`): The files, process by process.
        step (`int`): Optimizer steps made.
        manifest (`Manifest`): The run's.
    """

    paths: Sequence[Path]
    step: int
    manifest: Manifest

    def header(self) -> SnapshotHeader:
        layout = self._layout()
        digests = [f"{name} {one.place.sha256}" for name, own in layout.pieces.items() for one in own.values()]
        return SnapshotHeader(hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest(), layout.samples)

    def read(self) -> Snapshot:
        layout = self._layout()
        found = [self._vector(layout, kind, self.manifest.parameters) for kind in layout.kinds]
        return Snapshot(self.step, found[0], found[1] if len(found) > 1 else None)

    def vector(self, kind: str, parameters: Iterable[Parameter]) -> torch.Tensor:
        """
        Some of the recorded parameters, or their second moments, one after the other as a flat vector, float32. Their
        pieces alone are read.
        """
        return self._vector(self._layout(), kind, parameters)

    def _vector(self, layout: _Layout, kind: str, parameters: Iterable[Parameter]) -> torch.Tensor:
        wanted = {piece_name(kind, parameter.name): parameter for parameter in parameters}
        whole = torch.empty(sum(parameter.size for parameter in wanted.values()))
        parts = whole.split([parameter.size for parameter in wanted.values()])
        views = {name: part.view(wanted[name].shape) for name, part in zip(wanted, parts, strict=True)}
        for path in self.paths:  # one after the other, so that memory holds the pieces of one
            tensors, _ = tensors_in(path, wanted)
            for name, tensor in tensors.items():
                one = layout.pieces[name].get(path)
                if one is None or tuple(tensor.shape) != one.shape or _digest(name, one, tensor) != one.place.sha256:
                    raise damaged(path)
                views[name].narrow(one.place.dim, one.place.start, one.shape[one.place.dim]).copy_(tensor)
        return whole

    def _layout(self) -> _Layout:
        pieces: dict[str, dict[Path, _Found]] = {}
        samples: tuple[float, ...] = ()
        for rank, path in enumerate(self.paths):
            shapes, metadata = shapes_in(path, self.step, self.manifest.run_id)
            if metadata.get(RANK) != str(rank):
                raise TrajectoryError(f"Snapshot {path.name} is another process's: give it its own name again.")
            places = RECORD.line(metadata.get(PIECES, "").encode(), dict[str, Piece], f"{path.name}, {PIECES},")
            if places.keys() != shapes.keys():
                raise not_a_snapshot(path)
            for name, place in places.items():
                pieces.setdefault(name, {})[path] = _Found(place, tuple(shapes[name]))
            samples += samples_in(path, metadata)
        return _Layout(self._kinds(pieces), pieces, samples)

    def _kinds(self, pieces: dict[str, dict[Path, _Found]]) -> list[str]:
        """What the files hold, if that is the recorded parameters, whole, and nothing else."""
        moment = any(name.startswith(f"{SECOND_MOMENT}.") for name in pieces)
        kinds = [PARAMETERS, SECOND_MOMENT] if moment else [PARAMETERS]
        shapes = {piece_name(kind, one.name): one.shape for kind in kinds for one in self.manifest.parameters}
        for name in pieces.keys() - shapes.keys():
            raise not_a_snapshot(next(iter(pieces[name])))
        for name, shape in shapes.items():
            if not _make_up(list(pieces.get(name, {}).values()), shape):
                raise TrajectoryError(
                    f"The parts of the snapshot of step {self.step} do not make up {name}: {RECORD.mend}."
                )
        return kinds


def _digest(name: str, one: _Found, tensor: torch.Tensor) -> str:
    return piece_digest(name, one.place.dim, one.place.start, tensor)


def _make_up(pieces: list[_Found], shape: tuple[int, ...]) -> bool:
    """Whether pieces lie side by side along one dimension, and fill a parameter of that shape."""
    if not pieces:
        return 0 in shape
    dim, end = pieces[0].place.dim, 0
    for one in sorted(pieces, key=lambda one: one.place.start):
        beside = one.place.dim == dim < len(one.shape) and one.place.start == end
        if not beside or (*one.shape[:dim], *one.shape[dim + 1 :]) != (*shape[:dim], *shape[dim + 1 :]):
            return False
        end += one.shape[dim]
    return len(pieces[0].shape) == len(shape) and end == shape[dim]
