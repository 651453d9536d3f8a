"""Opening a new record, or the one that a resumed run continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from hf_prune._core import io
from hf_prune._core.processes import Processes
from hf_prune.errors import RecordingError, TrajectoryError
from hf_prune.trajectory import files
from hf_prune.trajectory.ledger import parts_of_steps, read_rows
from hf_prune.trajectory.manifest import Manifest, read_manifest

Value = TypeVar("Value")


@dataclass(frozen=True)
class Session:
    """
    What all processes agree on before the first step.

    Args:
        manifest (`Manifest`): The manifest on disk.
        part (`int`): The ledger part that this attempt writes.
        snapshots (`tuple[int, ...]`): Steps of the snapshots that a resumed run finds.
        apart (`tuple[int, ...]`):
            Of each disk that holds ledgers and is not the main process's, the first process that sees it.
    """

    manifest: Manifest
    part: int
    snapshots: tuple[int, ...] = ()
    apart: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Found:
    """
    What a disk holds of the run that goes on: its id, for each process the part that each step is in, the last part,
    and the processes that wrote each snapshot.
    """

    run_id: str | None = None
    steps: dict[int, list[int]] = field(default_factory=dict)
    part: int = -1
    snapshots: dict[int, list[int]] = field(default_factory=dict)


# What a resumed run must share with the one that it continues.
_FIXED = (
    "dataset_columns",
    "n_rows",
    "id_column",
    "parameters",
    "world_size",
    "snapshot_dtype",
    "max_grad_norm",
    "row_statistics",
    "pairs",
)


def open_or_resume(manifest: Manifest, root: Path, step: int, own_run: str | None, processes: Processes) -> Session:
    """
    Makes or continues the record on the main process, and what belongs to it on disks that only others see; if it
    cannot be done on one, all processes raise.

    Args:
        manifest (`Manifest`): What this run would write into an empty directory.
        root (`Path`): The trajectory's directory.
        step (`int`): The Trainer's `global_step`: more than 0 if it resumed.
        own_run (`str`, *optional*): A run that this very callback began and that never ended; it may be replaced.
        processes (`Processes`): Those of the run.
    """
    _agreed(processes, root, lambda: _make_directories(root, manifest))
    first = processes.first_that_sees(root)
    alone = processes.rank == first
    found = _agreed(processes, root, lambda: _prepare(root, step, own_run) if alone else None)
    there = [one for one in processes.gather(found) if one is not None]
    main = processes.rank == 0
    opened = _agreed(processes, root, lambda: _open(manifest, root, step, there) if main else None)
    opened = processes.broadcast(opened)
    assert opened is not None, "the main process has opened the record"
    _agreed(processes, root, lambda: _join(root, opened, main) if alone else None)
    apart = tuple(sorted(set(processes.gather(first)) - {0}))
    return replace(opened, apart=apart)


def _agreed(processes: Processes, root: Path, work: Callable[[], Value]) -> Value:
    """What `work` returns, in all processes; if it fails in one, all raise."""
    value, failure = None, None
    try:
        with io.writing("The record", root):
            value = work()
    except (RecordingError, TrajectoryError, OSError) as error:
        failure = str(error)
    failure = processes.first_failure(failure)
    if failure is not None:
        raise RecordingError(failure)
    return cast(Value, value)


def _make_directories(root: Path, manifest: Manifest) -> None:
    inner = [files.LEDGER, files.SNAPSHOTS] + [files.STATISTICS_DIRECTORY] * manifest.row_statistics
    for directory in (root, *(root / name for name in inner)):
        directory.mkdir(parents=True, exist_ok=True)


def _prepare(root: Path, step: int, own_run: str | None) -> _Found:
    """Clears the place for a run that begins, or finds what there is of one that goes on."""
    _remove_temporaries(root)
    known = (root / files.MANIFEST).exists()
    if step > 0:
        if not known:
            return _Found()
        run_id = read_manifest(root).run_id
        last = max((part for _, part in files.part_paths(root)), default=-1)
        snapshots = {step: list(found) for step, found in files.snapshot_paths(root).items()}
        return _Found(run_id, parts_of_steps(root, run_id), last, snapshots)
    if known:
        found = read_manifest(root)
        if found.run_id != own_run and (found.complete or _has_steps(root, found)):
            raise RecordingError(
                f"{root} already holds the record of another run, and two runs never mix: choose another output_dir, "
                "delete that one, or continue its run with trainer.train(resume_from_checkpoint=True)."
            )
    _remove_record(root)
    return _Found()


def _open(manifest: Manifest, root: Path, step: int, there: list[_Found]) -> Session:
    if step > 0:
        return _continue(manifest, root, step, there)
    write_manifest(root, manifest)
    return Session(manifest, part=0)


def _has_steps(root: Path, found: Manifest) -> bool:
    try:
        return bool(read_rows(root, found.run_id, found.world_size))
    except TrajectoryError:
        return True  # whatever it is, it is not ours to replace


def _continue(manifest: Manifest, root: Path, step: int, there: list[_Found]) -> Session:
    if not (root / files.MANIFEST).exists():
        raise RecordingError(
            f"Training resumes at step {step}, but {root} holds no record of the steps before: give the output_dir of "
            "the interrupted run, or train from the beginning with the callback."
        )
    found = read_manifest(root)
    if found.no_statistics is not None:
        manifest = replace(manifest, row_statistics=False, no_statistics=found.no_statistics)
    for name in _FIXED:
        if getattr(found, name) != getattr(manifest, name):
            raise RecordingError(
                f"{root} holds the record of another run ({name.replace('_', ' ')} differs): resume with the settings "
                "and the data of the interrupted run, or choose another output_dir and train from the beginning."
            )
    if found.optimizer["name"] != manifest.optimizer["name"]:
        raise RecordingError(
            f"The record was made with {found.optimizer['name']}, this run trains with {manifest.optimizer['name']}: "
            "resume with the same optimizer."
        )
    if any(one.run_id not in (None, found.run_id) for one in there):
        raise RecordingError(
            f"Machines of this launch hold records of different runs in {root}: choose another output_dir, or delete "
            "those that are not of the run that goes on."
        )
    recorded = _recorded(there, found.world_size)
    if recorded < step:
        raise RecordingError(
            f"Training resumes at step {step}, but {root} was recorded only up to step {recorded}: resume from an "
            "earlier checkpoint, or train from the beginning with another output_dir."
        )
    continued = replace(
        manifest,
        run_id=found.run_id,
        updates_before_start=found.updates_before_start,
        loss=found.loss,
        inputs=found.inputs,
        label_column=found.label_column,
    )
    write_manifest(root, continued)
    part = 1 + max(one.part for one in there)
    return Session(continued, part, tuple(at for at in _snapshots(there, found.world_size) if at <= step))


def _snapshots(there: list[_Found], world_size: int) -> list[int]:
    """Steps of the snapshots that are whole, wherever their parts lie."""
    ranks: dict[int, set[int]] = {}
    for one in there:
        for step, own in one.snapshots.items():
            ranks.setdefault(step, set()).update(own)
    return sorted(step for step, own in ranks.items() if files.is_whole(own, world_size))


def _join(root: Path, opened: Session, main: bool) -> None:
    """Makes a disk's part of the record what the main process has opened."""
    for step, paths in files.snapshot_paths(root).items():
        if step not in opened.snapshots:
            for path in paths.values():
                path.unlink()  # of the attempt that was cut off; this one takes its own
    if not main:
        write_manifest(root, opened.manifest)


def _recorded(there: list[_Found], world_size: int) -> int:
    """Steps that all processes have recorded, in the same parts, wherever these lie."""
    ledgers = [max((one.steps.get(rank, []) for one in there), key=len) for rank in range(world_size)]
    apart = (step for step, parts in enumerate(zip(*ledgers, strict=False)) if len(set(parts)) > 1)
    return next(apart, min(map(len, ledgers)))


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, whole or not at all."""
    content = json.dumps(manifest.to_dict(), indent=2, sort_keys=True) + "\n"
    io.write_bytes(root / files.MANIFEST, content.encode())


def _remove_temporaries(root: Path) -> None:
    """Removes what writes that were killed left behind."""
    for directory in (root, root / files.SNAPSHOTS):
        io.remove_temporaries(directory)


def _remove_record(root: Path) -> None:
    """Removes a record, and nothing else that lies in its directory."""
    snapshots = [path for paths in files.snapshot_paths(root).values() for path in paths.values()]
    for path in [*files.all_parts(root), *snapshots, root / files.MANIFEST]:
        path.unlink(missing_ok=True)
    _remove_temporaries(root)
