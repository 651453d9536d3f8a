"""Rows that were not trained on, scored part by part: a pool or a stream of any length takes the memory of a part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset
from datasets.utils import tqdm

from hf_prune.influence.features import RowFeatures
from hf_prune.influence.scorer import Scorer
from hf_prune.model.rows import Rows

# Rows of a part: the snapshots of the window are read once for each.
PART = 1024


class PoolScorer:
    """
    The columns of rows that were not trained on, for `Dataset.map` in batches of `PART` rows.

    Args:
        scorer (`Scorer`): what was prepared to score parts.
        features (`RowFeatures`, *optional*): what the model makes of rows.
    """

    def __init__(self, scorer: Scorer, features: RowFeatures | None):
        self.scorer, self.features = scorer, features

    def __call__(self, columns: dict[str, list[Any]], indices: list[int]) -> dict[str, np.ndarray]:
        return self.of(self.scorer.targets.select(indices))

    def of(self, rows: Rows) -> dict[str, np.ndarray]:
        """The columns of a part."""
        found = self.scorer.columns(self.scorer.shifts_of(rows))
        if self.features is None:
            return found
        size, own = self.scorer.batch_size, self.features.on(rows)
        batches = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
        return found | {self.features.column: np.concatenate([own({}, part)[own.column] for part in batches])}


def score_stream(
    stream: IterableDataset, score: Callable[[Dataset], dict[str, np.ndarray]], columns: Features, file: Path
) -> None:
    """
    Writes a stream with its scores in one pass.

    Args:
        stream (`datasets.IterableDataset`): The rows.
        score (`Callable`): The score columns of a part of them.
        columns (`datasets.Features`): What these are.
        file (`Path`): Where to write; it is there when it is whole.

    Raises:
        `ValueError`: for a stream without rows, or whose rows are not alike.
    """
    parts, partial = _parts(stream), file.with_suffix(".partial")
    first = next(parts, None)
    if first is None:
        raise ValueError("The stream has no rows: pass one that yields candidates.")
    own = [name for name in first.column_names if name not in columns]
    features = Features({**{name: first.features[name] for name in own}, **columns})
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema) as writer:
            for part in chain([first], parts):
                table = part.select_columns(own).with_format("arrow")[:]
                scores = Dataset.from_dict(score(part), features=columns).with_format("arrow")[:]
                for name in columns:
                    table = table.append_column(name, scores.column(name))
                writer.write_table(table.cast(features.arrow_schema))
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _parts(stream: IterableDataset) -> Iterator[Dataset]:
    features = stream.features
    with tqdm(desc="Scoring the stream", unit="row") as bar:
        for columns in stream.iter(PART):
            try:
                part = Dataset.from_dict(columns, features=features)
            except (ValueError, TypeError, KeyError) as error:  # Arrow's own are ValueErrors
                raise ValueError(
                    f"Rows of the stream are not alike ({error}): say what its columns are, as in "
                    "stream.cast(features)."
                ) from error
            features = part.features
            yield part
            bar.update(len(part))
