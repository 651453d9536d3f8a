"""Numbering rows where no sampler says which rows a batch holds: streams, and batches that one process hands out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, Features, IterableDataset, Value

from hf_prune._core import compat
from hf_prune._core.columns import ID_COLUMN

ROWS_PER_SHARD = 2**32
_BATCH = 256

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)


def with_example_ids(dataset: AnyDataset) -> AnyDataset:
    """
    Adds the integer column `hf_prune_id`, which tells rows apart whatever becomes of their order.

    [`TrajectoryCallback`] knows rows by it that no sampler names, and [`Selection.apply`] finds raw rows again by it
    whose contents the Trainer's preparation has replaced.

    For recording it is needed for an `IterableDataset` and with `dispatch_batches=True`. Keep only the columns that
    the model takes, and pass `remove_unused_columns=False`, so that the column reaches the batches; the callback takes
    it out again before the model sees it.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            The rows. The ids of a `Dataset` are its positions. Those of an `IterableDataset` are its positions too if
            it has one shard; else `shard * 2**32 + position in the shard`, so that they stay the same when shards are
            shuffled or split over processes and workers. Number a stream first, then shuffle it.

    Returns:
        The dataset with the column.

    Raises:
        `ValueError`: if the column exists, or a stream was shuffled before.
        `TypeError`: for other kinds of dataset.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            f"with_example_ids takes a datasets.Dataset or IterableDataset, not {type(dataset).__name__}; let your "
            f"own dataset put an integer {ID_COLUMN!r} into each example."
        )
    if ID_COLUMN in (dataset.column_names or []):
        raise ValueError(f"The dataset has a column {ID_COLUMN!r} already: use it as it is, or remove it first.")
    if isinstance(dataset, Dataset):
        return dataset.add_column(ID_COLUMN, np.arange(len(dataset), dtype=np.int64))
    return _number_stream(dataset)


def _number_stream(dataset: IterableDataset) -> IterableDataset:
    if compat.is_shuffled(dataset):
        raise ValueError(
            "The stream is shuffled, so positions change from epoch to epoch: number it before shuffle()."
        )
    features = dataset.features
    if features is not None:
        features = Features({**features, ID_COLUMN: Value("int64")})
        dataset = dataset.decode(False)  # rows only pass through
    shards = [
        (index, dataset.shard(num_shards=dataset.num_shards, index=index)) for index in range(dataset.num_shards)
    ]
    return IterableDataset.from_generator(_numbered, features=features, gen_kwargs={"shards": shards})


def _numbered(shards: list[tuple[int, IterableDataset]]) -> Iterator[dict[str, Any]]:
    for index, shard in shards:
        position = index * ROWS_PER_SHARD
        # Iterating over the shard itself would split it a second time among a dataloader's workers; `iter` does not.
        for batch in shard.iter(batch_size=_BATCH):
            for values in zip(*batch.values(), strict=True):
                yield {**dict(zip(batch, values, strict=True)), ID_COLUMN: position}
                position += 1
