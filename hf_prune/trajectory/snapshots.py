"""Snapshots: the trainable parameters and the optimizer's second moment at one step, as flat vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hf_prune.errors import TrajectoryError

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
        updates (`int`, *optional*): The optimizer's own count of its updates; `None` if it keeps none.
        parameters (`torch.Tensor`): Shape (p,), float32.
        second_moment (`torch.Tensor`, *optional*): Shape (p,), float32; `None` for an optimizer without one.
    """

    step: int
    updates: int | None
    parameters: torch.Tensor
    second_moment: torch.Tensor | None


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes of contiguous CPU tensors."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def samples_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Four entries of each tensor, evenly spread, float32: a fingerprint that tells rounding from other values."""
    entries = [_entries(tensor.detach()) for tensor in tensors if tensor.numel()]
    return torch.cat(entries) if entries else torch.empty(0)


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    places = [tensor.numel() * (2 * k + 1) // (2 * _ENTRIES) for k in range(_ENTRIES)]
    return tensor.reshape(-1)[places].float()


def read_metadata(path: Path, run_id: str, size: int) -> dict[str, str]:
    """Reads and checks a snapshot's header: it must be whole, of this run, and of the right length."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            shape = file.get_slice(PARAMETERS).get_shape()
    except FileNotFoundError as error:
        raise _removed(path) from error
    except (SafetensorError, OSError) as error:
        raise TrajectoryError(f"Snapshot {path.name} is damaged ({error}): record the run again.") from error
    if metadata.get("run_id") != run_id:
        raise TrajectoryError(
            f"Snapshot {path.name} belongs to run {metadata.get('run_id')}, the manifest to run {run_id}: files of "
            "two runs were mixed; take the snapshots from the place where the manifest was written."
        )
    if list(shape) != [size]:
        raise TrajectoryError(f"Snapshot {path.name} holds {shape} values where the manifest names {size} parameters.")
    return metadata


def read_snapshot(path: Path) -> Snapshot:
    """Reads a snapshot, and checks that its bytes are those that were written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except FileNotFoundError as error:
        raise _removed(path) from error
    if tensors_digest(tensors) != metadata["sha256"]:
        raise TrajectoryError(f"Snapshot {path.name} is damaged (its digest differs): record the run again.")
    moment = tensors.get(SECOND_MOMENT)
    return Snapshot(
        step=int(metadata["step"]),
        updates=int(metadata["updates"]) if "updates" in metadata else None,
        parameters=tensors[PARAMETERS].float(),
        second_moment=None if moment is None else moment.float(),
    )


def _removed(path: Path) -> TrajectoryError:
    return TrajectoryError(
        f"Snapshot {path.name} is not there any more, because the run went on and its window with it: open the record "
        "again."
    )
