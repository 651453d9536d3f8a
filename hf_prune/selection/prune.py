"""`prune` and `select`: from a scored dataset to the rows that the model needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset

from . import methods, size
from .certificate import certify
from .options import Options
from .problem import Problem, read_problem
from .pruned import PrunedDataset
from .selection import Selection


def prune(
    dataset: Dataset,
    keep: float | int | None = None,
    *,
    epsilon: float | None = None,
    method: str = "influence",
    difficulty: str | float | None = "auto",
    balance: str | bool | None = None,
    buckets: int | str = "auto",
    column: str = "influence",
    seed: int = 0,
) -> PrunedDataset:
    """
    Keeps the rows of a scored dataset that the trained model needs, in their old order.

    The same dataset, arguments and seed give the same rows, whatever machine and number of workers. Large datasets are
    solved in buckets through joblib: `joblib.parallel_config(n_jobs=8)` or a Dask, Ray or Spark backend runs them in
    parallel.

    Args:
        dataset (`Dataset`):
            A dataset with the columns of `add_influence`; for a `DatasetDict`, one of its splits.
        keep (`float` or `int`, *optional*):
            What to keep: a share in (0, 1], or a whole number of rows. Either this or `epsilon` has to be given.
        epsilon (`float`, *optional*):
            Keep as few rows as leave the predicted shift (the L2 norm over all directions of
            `n/(n-m) * sum over the m dropped rows of (S_i - mean S)`) at most this large; found to n/1024 rows. Its
            unit is that of the influence column: the RMS shift of a held-out logit vector.
        method (`str`, *optional*, defaults to `"influence"`):
            `"influence"` balances the dropped rows' influence by a linear program; `"random"`, `"stratified"` (random
            within classes) and `"norm"` (keeps the largest `influence_norm`) are baselines.
        difficulty (`str` or `float`, *optional*, defaults to `"auto"`):
            Which of the balanced subsets to take: a quantile in [0, 1] of `influence_norm` to stay near (1 keeps the
            hardest rows), None for no preference, or `"auto"` to choose by what the columns show.
        balance (`str` or `False`, *optional*):
            Column whose class shares are kept, or `False` for none. By default `label` or `labels`, if it holds
            classes.
        buckets (`int` or `str`, *optional*, defaults to `"auto"`):
            Number of parts that are solved on their own before the residual is carried through them; `"auto"` makes
            one of up to 20,000 rows, and of more rows parts of 10,000.
        column (`str`, *optional*, defaults to `"influence"`):
            The influence column.
        seed (`int`, *optional*, defaults to 0):
            Breaks ties, and draws buckets and random subsets.

    Returns:
        [`PrunedDataset`]: The kept rows; `selection` holds their ids and the certificate.

    Raises:
        `TypeError`: If the dataset is no `Dataset`, or an argument is of a wrong type.
        `ValueError`: If an argument is out of range, a column is missing or holds NaN or infinite values, or a class
            would lose all its rows.

    Example:

    ```py
    >>> pruned = prune(scored, keep=0.5)
    >>> print(pruned.selection.certificate.explain())
    ```
    """
    selection = select(
        dataset, keep, epsilon=epsilon, method=method, difficulty=difficulty, balance=balance, buckets=buckets,
        column=column, seed=seed,
    )  # fmt: skip
    return PrunedDataset.from_source(dataset, selection)


def select(
    dataset: Dataset,
    keep: float | int | None = None,
    *,
    epsilon: float | None = None,
    method: str = "influence",
    difficulty: str | float | None = "auto",
    balance: str | bool | None = None,
    buckets: int | str = "auto",
    column: str = "influence",
    seed: int = 0,
) -> Selection:
    """
    Chooses rows as [`prune`] does, and returns the choice instead of a dataset.

    Args:
        dataset (`Dataset`): See [`prune`], also for the other arguments.
        keep (`float` or `int`, *optional*): Share in (0, 1], or number of rows.
        epsilon (`float`, *optional*): Largest predicted shift.
        method (`str`, *optional*, defaults to `"influence"`): The method.
        difficulty (`str` or `float`, *optional*, defaults to `"auto"`): Which balanced subset.
        balance (`str` or `False`, *optional*): Column of the classes.
        buckets (`int` or `str`, *optional*, defaults to `"auto"`): Number of parts.
        column (`str`, *optional*, defaults to `"influence"`): The influence column.
        seed (`int`, *optional*, defaults to 0): Seed.

    Returns:
        [`Selection`]: Kept and dropped ids, certificate and arguments.
    """
    options = Options(keep, epsilon, method, difficulty, balance, buckets, column, seed)
    solve = methods.find(options.method)
    problem = read_problem(dataset, options.column, options.balance)
    choice, notes = _choose(problem, options, lambda dropped: solve(problem, dropped, options))
    scoring = _scoring_of(dataset, options.column)
    certificate = certify(
        problem, choice.dropped, method=options.method, seed=options.seed, epsilon=options.epsilon, scoring=scoring,
        notes=choice.notes + notes,
    )  # fmt: skip
    resolved = {"kept": certificate.kept, "balance": problem.classes.column if problem.classes else False}
    return Selection(
        keep_indices=np.flatnonzero(~choice.dropped),
        drop_indices=np.flatnonzero(choice.dropped),
        certificate=certificate,
        arguments=options.to_dict() | {"resolved": resolved | choice.resolved},
        scoring=scoring,
    )


def _scoring_of(dataset: Dataset, column: str) -> dict[str, Any] | None:
    """How `column` was scored, if the dataset knows; its info tells of the last scoring only."""
    scoring = getattr(dataset.info, "hf_prune", None)
    return scoring if scoring and scoring.get("influence", {}).get("column", column) == column else None


def _choose(
    problem: Problem, options: Options, solve: Callable[[int], methods.Choice]
) -> tuple[methods.Choice, tuple[str, ...]]:
    if options.epsilon is None:
        return solve(problem.n - options.kept_rows(problem.n)), ()
    most = problem.n - 1 if problem.classes is None else problem.classes.most_dropped()
    return size.drop_within(problem, options.epsilon, solve, most)
