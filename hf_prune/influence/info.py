"""Where influence columns came from, carried by the dataset itself."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from datasets import Dataset, DatasetInfo


@dataclass
class ScoredInfo(DatasetInfo):
    """
    `DatasetInfo` that also holds how the rows were scored.

    `map`, `select`, `filter` and the like keep it; a round trip through disk or the Hub does not.

    Attributes:
        hf_prune (`dict`): JSON-able; `trajectory` (digest and manifest), `influence` (the arguments) and
            `column_digests` of the scored dataset.
    """

    hf_prune: dict[str, Any] = field(default_factory=dict)


def with_scoring(dataset: Dataset, scoring: dict[str, Any]) -> Dataset:
    """The dataset with `scoring` in its info."""
    plain = {f.name: getattr(dataset.info, f.name) for f in fields(DatasetInfo)}
    dataset._info = ScoredInfo(**plain, hf_prune=scoring)
    return dataset
