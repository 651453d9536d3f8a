"""Is this the dataset that was trained on, and are the arguments sensible? One sentence each where not."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_prune._core.config import ScoringConfig
from hf_prune._core.digest import column_digests
from hf_prune.errors import TrajectoryError
from hf_prune.trajectory.trajectory import Trajectory


def check_arguments(
    config: ScoringConfig,
    dataset: Any,
    eval_dataset: Any,
    train_dataset: Any,
    batch_size: Any,
    num_proc: Any,
    max_memory: Any,
) -> None:
    """
    Checks what [`ScoringConfig`] does not hold.

    Raises:
        `TypeError`, `ValueError`: for an argument that cannot be worked with.
    """
    for name, value in (("dataset", dataset), ("eval_dataset", eval_dataset), ("train_dataset", train_dataset)):
        if isinstance(value, DatasetDict | IterableDatasetDict):
            raise TypeError(f"{name} is a DatasetDict; pass one split of it, such as {name}['train'].")
        if isinstance(value, IterableDataset):
            raise TypeError(f"{name} is an IterableDataset; load it without streaming=True to score its rows.")
        if not isinstance(value, Dataset) and not (name != "dataset" and value is None):
            raise TypeError(f"{name} must be a datasets.Dataset, not {type(value).__name__}.")
    for name, value in (("batch_size", batch_size), ("num_proc", num_proc)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number from 1 on, or None, not {value!r}.")
    if config.directions > len(dataset):
        raise ValueError(
            f"directions={config.directions} is more than the {len(dataset)} rows; ask for fewer directions."
        )
    if eval_dataset is not None and len(eval_dataset) == 0:
        raise ValueError("eval_dataset has no rows; pass held-out rows, or None.")
    if train_dataset is not None and config.mode == "visits":
        raise ValueError("Rows that were not trained on have no visits; score them with mode='expected'.")
    if max_memory is not None and (isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory < 1):
        raise ValueError(f"max_memory must be a number of bytes, or None, not {max_memory!r}.")


def check_dataset(dataset: Dataset, trajectory: Trajectory) -> None:
    """
    Compares the rows with the recorded content digests.

    Raises:
        `TrajectoryError`: when rows were added, removed, reordered or changed since the run was recorded.
    """
    if trajectory.manifest.n_rows is None:
        return  # a stream: its rows are known by their ids alone
    if len(dataset) != trajectory.n_rows:
        raise TrajectoryError(
            f"The dataset has {len(dataset)} rows and the recorded one had {trajectory.n_rows}; "
            "pass the train_dataset that the Trainer got, without added or removed rows."
        )
    shared = [name for name in trajectory.dataset_columns if name in dataset.column_names]
    if trajectory.dataset_columns and not shared:
        raise TrajectoryError(
            f"The dataset has none of the recorded columns {sorted(trajectory.dataset_columns)}; "
            "pass the train_dataset that the Trainer got, after the same preprocessing."
        )
    found = column_digests(dataset, shared)
    changed = [name for name in shared if found[name] != trajectory.dataset_columns[name]]
    if changed:
        raise TrajectoryError(
            f"Column {changed[0]!r} is not what was recorded (content digest {found[changed[0]][:12]} instead of "
            f"{trajectory.dataset_columns[changed[0]][:12]}): rows were changed or reordered; pass the train_dataset "
            "that the Trainer got."
        )


def row_positions(dataset: Dataset, trajectory: Trajectory) -> dict[int, int] | None:
    """Row of each recorded id, or `None` where ids are positions."""
    column = trajectory.id_column
    if column is None:
        return None
    if column not in dataset.column_names:
        raise TrajectoryError(f"Rows were recorded by the id column {column!r}, which this dataset has not; keep it.")
    ids = dataset.with_format(None)[column]
    positions = {int(row): place for place, row in enumerate(ids)}
    seen = {int(i) for step in trajectory.steps() for i in step.ids} - positions.keys()
    if seen:
        raise TrajectoryError(
            f"{len(seen)} recorded ids are not in column {column!r} (the first is {min(seen)}); pass the rows that "
            "were trained on, numbered as they were."
        )
    if len(positions) != len(dataset):
        raise TrajectoryError(f"The id column {column!r} holds a value more than once; ids must be unique.")
    return positions
