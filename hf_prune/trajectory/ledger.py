"""The ledger: one JSON line for each optimizer step and process, appended as training goes."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.files import part_paths


@dataclass(frozen=True)
class LedgerRow:
    """
    What one process did in one optimizer step.

    Args:
        step (`int`): 0-based optimizer step.
        epoch (`float`): Epochs of the data that were done after the step.
        ids (`list[list[int]]`): Ids of the examples in each micro-batch.
        scales (`list[float | None]`): The factor of each micro-batch's loss; `None` where it could not be measured.
        losses (`list[float | None]`): What the gradient of each micro-batch was taken of; `None` if not seen.
        num_items (`list[float | None]`): `num_items_in_batch` as the model received it.
        learning_rates (`list[float]`): One for each parameter group.
        grad_norm (`float`): Norm of the whole gradient before clipping.
        skipped (`bool`): Whether the gradient scaler skipped the update.
    """

    step: int
    epoch: float
    ids: list[list[int]]
    scales: list[float | None]
    losses: list[float | None]
    num_items: list[float | None]
    learning_rates: list[float]
    grad_norm: float
    skipped: bool


def read_rows(root: Path, run_id: str, world_size: int) -> list[list[LedgerRow]]:
    """
    Reads the ledger of all processes, up to the last step that every one of them finished.

    A resumed run opens a new part on each rank. From its first step on it supersedes the older parts.

    Args:
        root (`Path`): The trajectory's directory.
        run_id (`str`): The id that every part must carry.
        world_size (`int`): Number of processes of the run.

    Returns:
        `list[list[LedgerRow]]`: for each step, in order, one row for each rank.
    """
    paths = part_paths(root)
    ranks = {rank for rank, _ in paths}
    if extra := ranks - set(range(world_size)):
        raise TrajectoryError(f"The ledger holds files of rank {max(extra)}, but the run had {world_size} processes.")
    by_rank = []
    for rank in range(world_size):
        steps: dict[int, tuple[int, LedgerRow]] = {}
        for part in sorted(part for r, part in paths if r == rank):
            _supersede(steps, part, _read_part(paths[rank, part], run_id))
        by_rank.append(steps)
    missing = sorted(set(range(world_size)) - ranks)
    if missing and any(by_rank):
        raise TrajectoryError(
            f"The ledger of process {missing[0]} of {world_size} is missing in {root}: copy the whole directory "
            "again; where the run was killed in its first steps, record it again."
        )
    return _common_steps(by_rank)


def _supersede(steps: dict[int, tuple[int, LedgerRow]], part: int, rows: list[LedgerRow]) -> None:
    if not rows:
        return
    for step in [step for step in steps if step >= rows[0].step]:
        del steps[step]
    for row in rows:
        steps[row.step] = (part, row)


def _common_steps(by_rank: list[dict[int, tuple[int, LedgerRow]]]) -> list[list[LedgerRow]]:
    """Steps 0, 1, ... as long as every rank has them, from the same part: parts of one attempt belong together."""
    together: list[list[LedgerRow]] = []
    while all(len(together) in steps for steps in by_rank):
        found = [steps[len(together)] for steps in by_rank]
        if len({part for part, _ in found}) > 1:
            break
        together.append([row for _, row in found])
    return together


def _read_part(path: Path, run_id: str) -> list[LedgerRow]:
    return [_row(path, values) for values in read_lines(path, run_id)]


def read_lines(path: Path, run_id: str) -> list[dict[str, Any]]:
    """The whole lines of one part below its header; a tail that was cut off by a kill is left out."""
    lines = path.read_bytes().split(b"\n")[:-1]
    if not lines:
        return []  # killed before the header was whole
    found = _object(path, lines[0]).get("run_id")
    if found != run_id:
        raise TrajectoryError(
            f"{path.name} belongs to run {found}, the manifest to run {run_id}: files of two runs were mixed; "
            "take the ledger and snapshots from the place where the manifest was written."
        )
    return [_object(path, line) for line in lines[1:]]


def _object(path: Path, line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise TrajectoryError(f"{path.name} is damaged ({error}): copy it again, or record the run again.") from error
    if not isinstance(values, dict):
        raise TrajectoryError(f"{path.name} is not a ledger that this version reads: record the run again.")
    return values


def _row(path: Path, values: dict[str, Any]) -> LedgerRow:
    if values.keys() != _NAMES or not _is_sound(values):
        raise TrajectoryError(f"{path.name} holds a row that is not of this format: record the run again.")
    return LedgerRow(**values)


def _is_sound(values: dict[str, Any]) -> bool:
    ids, step = values["ids"], values["step"]
    batches = isinstance(ids, list) and all(isinstance(batch, list) for batch in ids)
    return type(step) is int and batches and all(type(i) is int for batch in ids for i in batch)


_NAMES = {field.name for field in fields(LedgerRow)}
