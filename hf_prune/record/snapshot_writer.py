"""Writing snapshots: what they take, and the thread that writes them and removes superseded ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hf_prune._core.io import write_atomically
from hf_prune.record.pending import HostCopy
from hf_prune.record.pieces import OwnPieces
from hf_prune.trajectory.files import WHOLE, snapshot_path
from hf_prune.trajectory.snapshots import DTYPES, SAMPLES, tensors_digest

# Larger snapshots of sharded parameters (from a billion with Adam's moment on) are written in parts: the main process
# holds a whole one in memory, pinned on CUDA, and the others wait while it is gathered.
LARGEST_GATHERED = 8 * 2**30
# What safetensors calls them.
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def snapshot_bytes(size: int, dtype: str, second_moment: bool) -> int:
    """Disk space of one snapshot of `size` parameters."""
    return size * DTYPES[dtype].itemsize * (2 if second_moment else 1)


def disk_warning(each: int, count: int, free: int) -> str | None:
    """What to tell the user if `count` snapshots of `each` bytes do not fit into `free` bytes; else `None`."""
    if each * count <= free:
        return None
    return (
        f"{count} snapshots of {each / 1e9:.2f} GB each will not fit on the disk, which has {free / 1e9:.2f} GB left: "
        "free some, or record fewer parameters, a smaller window, or snapshot_dtype='bfloat16'."
    )


class SnapshotWriter:
    """
    Copies parameters on the caller's thread into a buffer that is used again and again, and writes it in one
    background thread. At most one write is under way: the next copy waits for it.

    Args:
        root (`Path`): The trajectory's directory.
        run_id (`str`): The run's id, kept in each file.
        size (`int`): Length p of the flat vector, or of what this process holds of it.
        dtype (`str`): `"float32"` or `"bfloat16"`.
        own (`OwnPieces`, *optional*): What this process holds, where each writes its own part.
    """

    def __init__(self, root: Path, run_id: str, size: int, dtype: str, own: OwnPieces | None = None):
        self._root, self._run_id, self._size, self._dtype = root, run_id, size, DTYPES[dtype]
        self._own, self._superseded = own, list[int]()
        self._buffers: dict[str, torch.Tensor] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf_prune-snapshot")
        self._pending: Future[None] | None = None

    def take(
        self,
        step: int,
        vectors: Mapping[str, Iterable[torch.Tensor]],
        samples: HostCopy,
        superseded: Sequence[int],
    ) -> None:
        """
        Copies the tensors and queues the write. Raises the error of the last write, if it failed.

        Args:
            step (`int`): Optimizer steps made.
            vectors (`Mapping[str, Iterable[torch.Tensor]]`):
                For each kind, the tensors that make up the flat vector, one after the other.
            samples (`HostCopy`): Entries of the parameters that are not recorded.
            superseded (`Sequence[int]`):
                Steps whose snapshots are removed once this one is on disk. Where each process writes a part, that is
                at the next one: by then all have written theirs.
        """
        try:
            self.wait()
        except Exception:
            go_through(vectors)
            raise
        copied, removed = None, list(superseded)
        if self._own is not None:
            removed, self._superseded = self._superseded, removed
        for kind, tensors in vectors.items():
            copied = self._copy(kind, tensors) or copied
        metadata = {"run_id": self._run_id, "step": str(step)}
        self._pending = self._pool.submit(self._write, step, list(vectors), metadata, copied, samples, removed)

    def remove_superseded(self) -> None:
        """Removes what the last snapshot has superseded, once all processes have written it."""
        self._remove(self._superseded)
        self._superseded = []

    def check(self) -> None:
        """Raises the error of the last write if it is known to have failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the write that is under way, and raises its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the last write and ends the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _copy(self, kind: str, tensors: Iterable[torch.Tensor]) -> torch.cuda.Event | None:
        start, on_cuda = 0, False
        for tensor in tensors:
            on_cuda = on_cuda or tensor.is_cuda
            if kind not in self._buffers:
                self._buffers[kind] = torch.empty(self._size, dtype=self._dtype, pin_memory=on_cuda)
            place = self._buffers[kind][start : start + tensor.numel()]
            # Stream order puts the copy before the next update, so the training thread need not wait for it.
            place.copy_(tensor.detach().reshape(-1), non_blocking=tensor.is_cuda)
            start += tensor.numel()
        if not on_cuda:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _write(
        self,
        step: int,
        kinds: list[str],
        metadata: dict[str, str],
        copied: torch.cuda.Event | None,
        samples: HostCopy,
        removed: Sequence[int],
    ) -> None:
        if copied is not None:
            copied.synchronize()
        tensors = {kind: self._buffers[kind] for kind in kinds}
        metadata = {**metadata, SAMPLES: json.dumps(samples.numbers())}
        if self._own is None:
            metadata["sha256"] = tensors_digest(tensors)
        else:
            tensors, places = self._own.file(tensors)
            metadata |= places
        write_atomically(self._path(step), lambda path: _save(tensors, path, metadata))
        self._remove(removed)

    def _remove(self, steps: Sequence[int]) -> None:
        for step in steps:
            self._path(step).unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return snapshot_path(self._root, step, WHOLE if self._own is None else self._own.rank)


def go_through(vectors: Mapping[str, Iterable[torch.Tensor]]) -> None:
    """Takes part in gathering the tensors, for the process that keeps them or for none."""
    for tensors in vectors.values():
        for _ in tensors:
            pass


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file from the buffers themselves; safetensors' own function makes a copy of them first."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.view(torch.uint8).numpy().data)
