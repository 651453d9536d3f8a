"""The record of a scoring, carried by the dataset itself."""

from __future__ import annotations

from dataclasses import dataclass, fields

from datasets import Dataset, DatasetInfo

from hf_prune._core.records import ScoringRecord


@dataclass
class ScoredInfo(DatasetInfo):
    """
    `DatasetInfo` that also holds how the rows were scored.

    Attributes:
        hf_prune (`ScoringRecord`, *optional*): The record of the last scoring.
    """

    hf_prune: ScoringRecord | None = None


def with_scoring(dataset: Dataset, record: ScoringRecord) -> Dataset:
    """The dataset with the record in its info, where `map`, `select`, `filter` and the like keep it."""
    known = {f.name: getattr(dataset.info, f.name) for f in fields(DatasetInfo)}
    dataset._info = ScoredInfo(**known, hf_prune=record)
    return dataset


def scoring_of(dataset: Dataset, column: str | None = None) -> ScoringRecord | None:
    """
    How a dataset was scored, as far as it knows.

    Args:
        dataset (`Dataset`): The dataset.
        column (`str`, *optional*): The influence column that is meant: a dataset knows of its last scoring only.
    """
    record = getattr(dataset.info, "hf_prune", None)
    if record is None or (column is not None and record.config.column != column):
        return None
    return record


def require_scoring(dataset: Dataset) -> ScoringRecord:
    """
    How a dataset was scored.

    Raises:
        `ValueError`: if it does not know.
    """
    record = scoring_of(dataset)
    if record is None:
        raise ValueError("The dataset does not say how it was scored: score it with add_influence.")
    return record
