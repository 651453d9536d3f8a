"""
The record of a scoring, carried by the columns that it is about.

It stands as JSON in the `id` of the feature of the column of norms. `datasets` keeps that through `map`, `select`,
`filter` and `rename_column`, through `save_to_disk` and `load_from_disk`, Parquet files and the Hub, and drops it with
the column. `DatasetInfo` and the metadata of Arrow tables survive only some of these. It says nothing of single rows,
so that rows which were scored in the same way can be concatenated: for these there are check sums.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from datasets import Dataset, Features, Value

from hf_prune._core import compat
from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.doubts import DOUBTED
from hf_prune._core.reading import Reader, one_line
from hf_prune._core.records import ScoringRecord
from hf_prune._core.row_checks import check

_KEY = "hf_prune"
_READER = Reader(ValueError, "score the dataset again")


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
    where = f"Column {one_line(repr(norm))}"
    held = _READER.mapping(stamp.encode(errors="replace"), f"The record of {where} of how it was scored")
    try:
        record = ScoringRecord.from_dict(held[_KEY])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has an unreadable record of how it was scored ({one_line(error)}): {_READER.mend}."
        ) from error
    return record if column is None else replace(record, config=replace(record.config, column=column))


@dataclass(frozen=True)
class Claim:
    """
    What may be said of how rows were scored.

    Args:
        record (`ScoringRecord`, *optional*): How; `None` where it is not known, or not true any more.
        words (`tuple[str, ...]`): What has to be said with it, a sentence each.
    """

    record: ScoringRecord | None = None
    words: tuple[str, ...] = ()


def claim_of(dataset: Dataset, column: str) -> Claim:
    """
    Compares the rows with their check sums, and says what is left to say of how they were scored.

    Rows may have been left out, repeated, reordered or joined: each is checked by itself.

    Args:
        dataset (`Dataset`): A dataset with influence columns.
        column (`str`): The influence column.
    """
    record = scoring_of(dataset, column)
    if record is None:
        return Claim(
            words=(
                "The dataset does not say how its influence columns were made, so their unit is assumed, and the "
                "predicted loss is that of the recorded window: JSON, CSV and pandas lose it, save_to_disk and "
                "Parquet keep it.",
            )
        )
    n, trained, name = len(dataset), record.run and record.run.run.get("n_rows"), InfluenceColumns(column).check
    if name not in dataset.column_names:
        unknown = f"There is no column {name!r}, so whether rows are still as they were is not known."
        return Claim(record, (*(f"{DOUBTED}: {doubt}" for doubt in record.doubts), unknown))
    found = check(dataset, column, list(record.trained_columns), list(record.other_columns))
    if found.scores:
        return Claim(
            words=(
                f"{found.scores:,} of these {n:,} rows have other scores than add_influence wrote: nothing is claimed "
                "of how they were made, and their unit is assumed.",
            )
        )
    words = [f"{DOUBTED}: {doubt}" for doubt in record.doubts]
    if found.trained:
        words.append(
            f"{found.trained:,} of these {n:,} rows were changed since they were scored (in "
            f"{', '.join(record.trained_columns)}): their scores are those of what they were."
        )
    if found.others:
        words.append(
            f"{found.others:,} of these {n:,} rows were changed since they were scored in columns that the model did "
            f"not get ({', '.join(record.other_columns)})."
        )
    if not record.candidates and isinstance(trained, int) and trained != n:
        words.append(
            f"The choice was among {n:,} rows, and the model was trained on {trained:,}: rows were "
            + ("left out before, which the figures do not count." if n < trained else "added or repeated since.")
        )
    return Claim(record, tuple(words))


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
