"""`prune` and `select`: from a scored dataset to the rows that the model needs."""

from __future__ import annotations

from typing import Any, overload

from datasets import Dataset, DatasetDict

from hf_prune._core.config import SelectionConfig
from hf_prune._core.scoring import claim_of
from hf_prune._core.signature import takes
from hf_prune.selection import pipeline
from hf_prune.selection.family import Comparison, probed
from hf_prune.selection.method import method_of
from hf_prune.selection.problem import read_problem
from hf_prune.selection.pruned import PrunedDataset, PrunedDatasetDict
from hf_prune.selection.selection import Selection


@overload
def prune(
    dataset: Dataset,
    keep: float | int | None = None,
    *,
    split: None = None,
    probe: Comparison | None = None,
    **options: Any,
) -> PrunedDataset: ...


@overload
def prune(
    dataset: DatasetDict,
    keep: float | int | None = None,
    *,
    split: str,
    probe: Comparison | None = None,
    **options: Any,
) -> PrunedDatasetDict: ...


@takes(SelectionConfig)
def prune(
    dataset: Dataset | DatasetDict,
    keep: float | int | None = None,
    *,
    split: str | None = None,
    probe: Comparison | None = None,
    **options: Any,
) -> PrunedDataset | PrunedDatasetDict:
    """
    Keeps the rows of a scored dataset that the trained model needs, in their old order.

    The same dataset, arguments and seed give the same rows, whatever machine and number of workers. Large datasets are
    solved in buckets through joblib: `joblib.parallel_config(n_jobs=8)` or a Dask, Ray or Spark backend runs them in
    parallel.

    Args:
        dataset (`Dataset` or `DatasetDict`):
            A dataset with the columns of `add_influence`, or a `DatasetDict` that has one as a split.
        keep (`float` or `int`, *optional*):
            What to keep: a share in (0, 1], or a whole number of rows. Either this or `epsilon` has to be given.
        split (`str`, *optional*):
            The split of a `DatasetDict` to prune; the others stay as they are.
        probe ([`Probe`], *optional*):
            Finds out by retraining which rows to prefer; without one, rows that represent all are kept.
        **options:
            The fields of [`SelectionConfig`].

    Returns:
        [`PrunedDataset`]: The kept rows; `selection` holds their ids and the certificate. For a `DatasetDict`, a
        [`PrunedDatasetDict`]: the same dictionary with the pruned split.

    Raises:
        `TypeError`: If the dataset is not a `Dataset`, or an argument is of a wrong type.
        `ValueError`: If an argument is out of range, a column is missing or holds NaN or infinite values, or a class
            would lose all its rows.

    Example:

    ```py
    >>> pruned = prune(scored, keep=0.5)
    >>> print(pruned.selection.certificate.explain())
    ```
    """
    rows = resolve_split(dataset, split)
    pruned = PrunedDataset.from_source(rows, select(rows, keep, probe=probe, **options))
    return PrunedDatasetDict({**dataset, split: pruned}) if isinstance(dataset, DatasetDict) else pruned


@takes(SelectionConfig)
def select(
    dataset: Dataset | DatasetDict,
    keep: float | int | None = None,
    *,
    split: str | None = None,
    probe: Comparison | None = None,
    **options: Any,
) -> Selection:
    """
    Chooses rows as [`prune`] does, and returns the choice instead of a dataset.

    Args:
        dataset (`Dataset` or `DatasetDict`):
            A dataset with the columns of `add_influence`, or a `DatasetDict` that has one as a split.
        keep (`float` or `int`, *optional*):
            What to keep: a share in (0, 1], or a whole number of rows. Either this or `epsilon` has to be given.
        split (`str`, *optional*):
            The split of a `DatasetDict` to choose from.
        probe ([`Probe`], *optional*):
            Finds out by retraining which rows to prefer; without one, rows that represent all are kept.
        **options:
            The fields of [`SelectionConfig`].

    Returns:
        [`Selection`]: Kept and dropped ids, certificate, and what was asked for.
    """
    config = SelectionConfig.of(keep=keep, **options)
    method = method_of(config)
    rows = resolve_split(dataset, split)
    problem = read_problem(rows, config.column, config.balance, config.centred)
    claim = claim_of(rows, config.column)
    found = pipeline.run(problem, config, method, claim) if probe is None else probed(problem, config, claim, probe)
    return pipeline.warn_of_doubts(pipeline.warn_of_loss(found))


def resolve_split(dataset: Any, split: str | None) -> Any:
    """The dataset itself, or the named split of a `DatasetDict`; other kinds are left for the reader to refuse."""
    if split is None:
        return dataset
    if not isinstance(dataset, DatasetDict):
        raise ValueError(
            f"split={split!r} names a part of a DatasetDict, and this is a {type(dataset).__name__}: leave split out."
        )
    if split not in dataset:
        raise ValueError(f"There is no split {split!r}: pass one of {[str(name) for name in dataset]}.")
    return dataset[split]
