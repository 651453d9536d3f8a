"""`prune_path`: several rates from one scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from datasets import Dataset

from hf_prune._core.config import SelectionConfig
from hf_prune._core.scoring import claim_of
from hf_prune._core.signature import takes
from hf_prune.selection import pipeline
from hf_prune.selection.method import method_of
from hf_prune.selection.problem import read_problem
from hf_prune.selection.pruned import PrunedDataset

RATES = (0.3, 0.5, 0.7)


@takes(SelectionConfig, "keep", "epsilon")
def prune_path(
    dataset: Dataset, rates: Sequence[float] = RATES, *, nested: bool = False, **options: Any
) -> dict[float, PrunedDataset]:
    """
    Prunes a scored dataset at several rates; its columns are read once.

    Args:
        dataset (`Dataset`):
            A dataset with the columns of `add_influence`.
        rates (`Sequence[float]`, *optional*, defaults to `(0.3, 0.5, 0.7)`):
            Shares of the rows to drop, each in [0, 1).
        nested (`bool`, *optional*, defaults to `False`):
            Whether each rate keeps only rows that the smaller rates keep too. Such a chain is a little worse than each
            rate on its own, and comes from this call alone: `prune` with the same arguments does not reproduce it.
        **options:
            The fields of [`SelectionConfig`] other than `keep` and `epsilon`.

    Returns:
        `dict[float, PrunedDataset]`: The pruned datasets by rate, in the order of `rates`.

    Raises:
        `TypeError`, `ValueError`: For rates out of range, and as [`prune`] does.

    Example:

    ```py
    >>> path = prune_path(scored, rates=[0.3, 0.5, 0.7])
    >>> path[0.5].push_to_hub("me/imdb-half")
    ```
    """
    wrong = sorted({"keep", "epsilon", "split"} & set(options))
    if wrong:
        raise TypeError(f"prune_path takes rates instead of {wrong[0]}: leave {wrong[0]} out.")
    for rate in rates:
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 <= rate < 1:
            raise ValueError(f"rate {rate!r} is not in [0, 1): pass shares of rows to drop, such as rates=[0.3, 0.5].")
    first = SelectionConfig.of(keep=1.0, **options)
    method = method_of(first)
    problem = read_problem(dataset, first.column, first.balance, first.centred)
    gone, claim = np.zeros(problem.n, dtype=bool), claim_of(dataset, first.column)
    found: dict[float, PrunedDataset] = {}
    for rate in sorted(rates):
        chosen = replace(first, keep=round(1 - float(rate), 12))
        selection = pipeline.run(problem, chosen, method, claim, gone)
        if nested:
            gone = np.isin(np.arange(problem.n), selection.drop_indices)
        found[rate] = PrunedDataset.from_source(dataset, selection)
    return {rate: found[rate] for rate in rates}
