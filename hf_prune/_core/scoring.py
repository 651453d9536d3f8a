"""
The record of a scoring, carried by the columns that it is about.

It stands as JSON in the `id` of the feature of the column of norms. `datasets` keeps that through `map`, `select`,
`filter` and `rename_column`, through `save_to_disk` and `load_from_disk`, Parquet files and the Hub, and drops it with
the column. `DatasetInfo` and the metadata of Arrow tables survive only some of these.
"""

from __future__ import annotations

import json
from dataclasses import replace

from datasets import Dataset, Features, Value

from hf_prune._core import compat
from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.records import ScoringRecord

_KEY = "hf_prune"


def with_scoring(dataset: Dataset, record: ScoringRecord) -> Dataset:
    """
    The same rows, which know how they were scored.

    Args:
        dataset (`Dataset`): A dataset with the influence columns that the record names.
        record (`ScoringRecord`): How they were made.
    """
    name = InfluenceColumns(record.config.column).norm
    stamp = json.dumps({_KEY: record.to_dict()}, allow_nan=False)
    info = dataset.info.copy()
    info.features = Features({**dataset.features, name: Value(dataset.features[name].dtype, id=stamp)})
    return compat.as_class(dataset, Dataset, info)


def scoring_of(dataset: Dataset, column: str | None = None) -> ScoringRecord | None:
    """
    How influence columns were made, as far as the dataset knows.

    Args:
        dataset (`Dataset`): The dataset.
        column (`str`, *optional*): The influence column; by default the last one that was scored.

    Raises:
        `ValueError`: if the record was written by a newer version, or is damaged.
    """
    if column is None:
        stamped = [name for name in dataset.column_names if _stamp(dataset, name) is not None]
        norm = stamped[-1] if stamped else None
    else:
        norm = InfluenceColumns(column).norm
    stamp = None if norm is None else _stamp(dataset, norm)
    if stamp is None:
        return None
    try:
        record = ScoringRecord.from_dict(json.loads(stamp)[_KEY])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"Column {norm!r} has an unreadable record of how it was scored: {error}") from error
    return record if column is None else replace(record, config=replace(record.config, column=column))


def require_scoring(dataset: Dataset) -> ScoringRecord:
    """
    How the influence columns were made.

    Raises:
        `ValueError`: if the dataset does not know.
    """
    record = scoring_of(dataset)
    if record is None:
        raise ValueError("The dataset does not say how it was scored: score it with add_influence.")
    return record


def _stamp(dataset: Dataset, column: str) -> str | None:
    stamp = getattr(dataset.features.get(column), "id", None)
    return stamp if isinstance(stamp, str) and stamp.startswith(f'{{"{_KEY}":') else None
