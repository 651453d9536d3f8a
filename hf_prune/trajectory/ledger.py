"""The ledger: one JSON line for each optimizer step and process, appended as training goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from msgspec import Meta

from hf_prune._core.reading import Count, Id, one_line
from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.files import part_path, part_paths
from hf_prune.trajectory.manifest import RECORD


class OfStep(Protocol):
    """What a line holds: it is of one step."""

    @property
    def step(self) -> int: ...


Row = TypeVar("Row", bound=OfStep)
_PART_BYTES = 8 * 2**30
_Digits = Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")]


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

    step: Count
    epoch: float
    ids: list[list[Id]]
    scales: list[float | None]
    losses: list[float | None]
    num_items: list[float | None]
    learning_rates: list[int | float]
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
    by_rank = [_rows_of(paths, rank, run_id) for rank in range(world_size)]
    missing = sorted(set(range(world_size)) - ranks)
    if missing and any(by_rank):
        raise TrajectoryError(
            f"The ledger of process {missing[0]} of {world_size} is missing in {root}: gather what other machines "
            "hold of it (hf-prune gather), or copy the whole directory again; where the run was killed in its first "
            "steps, record it again."
        )
    return _common_steps(by_rank)


def parts_of_steps(root: Path, run_id: str) -> dict[int, list[int]]:
    """For each process whose ledger is in this directory, the part that each of its steps is in, from step 0 on."""
    paths, found = part_paths(root), {}
    for rank in sorted({rank for rank, _ in paths}):
        steps = _rows_of(paths, rank, run_id)
        whole = next(step for step in count() if step not in steps)
        found[rank] = [steps[step][0] for step in range(whole)]
    return found


def _rows_of(paths: dict[tuple[int, int], Path], rank: int, run_id: str) -> dict[int, tuple[int, LedgerRow]]:
    """The steps of one process with the part that each is in."""
    steps: dict[int, tuple[int, LedgerRow]] = {}
    for part in sorted(part for r, part in paths if r == rank):
        _supersede(steps, part, _read_part(paths[rank, part], run_id))
    return steps


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
    rows = read_lines(path, run_id, LedgerRow)
    for row in rows:
        if not len(row.ids) == len(row.scales) == len(row.losses) == len(row.num_items):
            raise TrajectoryError(f"{path}, step {row.step}, has micro-batches that lack something: {RECORD.mend}.")
        numbers = (row.epoch, *row.learning_rates, *row.scales, *row.losses, *row.num_items)
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise TrajectoryError(f"{path}, step {row.step}, holds NaN or infinity: {RECORD.mend}.")
    return rows


@dataclass(frozen=True)
class Header:
    """The first line of a part."""

    run_id: str
    rank: _Digits
    part: _Digits


def read_lines(path: Path, run_id: str, kind: type[Row]) -> list[Row]:
    """
    The whole lines of one part below its header, of steps that follow one another; a tail that was cut off by a kill
    is left out.
    """
    lines = (RECORD.content(path, _PART_BYTES) or b"").split(b"\n")[:-1]
    if not lines:
        return []  # killed before the header was whole
    header = RECORD.line(lines[0], Header, f"{path}, line 1,")
    if header.run_id != run_id:
        raise TrajectoryError(
            f"{path.name} belongs to run {one_line(header.run_id)}, the manifest to run {one_line(run_id)}: files of "
            "two runs were mixed; take the ledger and snapshots from the place where the manifest was written."
        )
    if path.name != part_path(path, int(header.rank), int(header.part)).name:
        raise TrajectoryError(
            f"{path} is part {header.part} of rank {header.rank} under another name: give it its own name again."
        )
    rows = [RECORD.line(line, kind, f"{path}, line {place},") for place, line in enumerate(lines[1:], 2)]
    for before, after in pairwise(rows):
        if after.step != before.step + 1:
            raise TrajectoryError(f"{path}: step {after.step} follows step {before.step}: {RECORD.mend}.")
    return rows
