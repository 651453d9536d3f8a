"""`prune` and `select`: from a scored dataset to the rows that the model needs."""

from __future__ import annotations

from typing import Any, overload

from datasets import Dataset, DatasetDict

from . import solve
from .options import Options
from .problem import read_problem
from .pruned import PrunedDataset
from .selection import Selection


@overload
def prune(
    dataset: Dataset,
    keep: float | int | None = None,
    *,
    epsilon: float | None = None,
    method: str = "influence",
    difficulty: str | float | None = "auto",
    cost: str | None = None,
    harmful: str = "keep",
    balance: str | bool | None = None,
    centred: bool = True,
    features: str | None = None,
    buckets: int | str = "auto",
    column: str = "influence",
    split: None = None,
    seed: int = 0,
) -> PrunedDataset: ...


@overload
def prune(
    dataset: DatasetDict,
    keep: float | int | None = None,
    *,
    epsilon: float | None = None,
    method: str = "influence",
    difficulty: str | float | None = "auto",
    cost: str | None = None,
    harmful: str = "keep",
    balance: str | bool | None = None,
    centred: bool = True,
    features: str | None = None,
    buckets: int | str = "auto",
    column: str = "influence",
    split: str,
    seed: int = 0,
) -> DatasetDict: ...


def prune(
    dataset: Dataset | DatasetDict,
    keep: float | int | None = None,
    *,
    epsilon: float | None = None,
    method: str = "influence",
    difficulty: str | float | None = "auto",
    cost: str | None = None,
    harmful: str = "keep",
    balance: str | bool | None = None,
    centred: bool = True,
    features: str | None = None,
    buckets: int | str = "auto",
    column: str = "influence",
    split: str | None = None,
    seed: int = 0,
) -> PrunedDataset | DatasetDict:
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
        epsilon (`float`, *optional*):
            Keep as few rows as leave the predicted shift (the L2 norm over all directions of
            `n/(n-m) * sum over the m dropped rows of (S_i - mean S)`) at most this large; found to n/1024 rows. Its
            unit is that of the influence column: the RMS shift of a held-out logit vector.
        method (`str`, *optional*, defaults to `"influence"`):
            `"influence"` chooses by influence vectors what `difficulty` asks for: rows that represent the others, or
            dropped rows that cancel out. Baselines that need no other column
            are `"random"`, `"stratified"` (random within classes) and `"norm"` (keeps the largest `influence_norm`);
            `"el2n"`, `"grand"`, `"forgetting"`, `"aum"`, `"loss"`, `"tdds"` and `"ccs"` read the columns of
            `add_scores`; `"moderate"`, `"herding"` and `"kcenter"` measure distances between rows;
            `"iclr2023"` ([arXiv 2205.09329](https://hf.co/papers/2205.09329)) reads the last layer's influence.
        difficulty (`str` or `float`, *optional*, defaults to `"auto"`):
            Which of the balanced subsets to take: a quantile in [0, 1] of `influence_norm` to stay near (1 keeps the
            hardest rows), or None for no preference. `"auto"` keeps some of the hardest rows or leaves them out, by
            what the columns show, and rows that represent the rest (see docs/SELECTION.md); with `epsilon` it is None.
        cost (`str`, *optional*):
            A column of numbers that takes the place of `difficulty`: the cost of dropping each row in the linear
            program, so that rows of large values are kept.
        harmful (`str`, *optional*, defaults to `"keep"`):
            `"drop"` drops rows that are predicted to harm the model, such as wrongly labelled ones, before all others
            (and no more rows than go anyway); the certificate says which, and by which rule. They are those of the
            lowest `aum`, as many as have `aum < 0` (another class was believed more over the recorded epochs) and,
            besides, are predicted to lower the held-out loss by going (`influence_eval_loss < 0`) or have a loss worse
            than a guess's (`loss > ln classes`). Needs the columns of `add_scores`.
        balance (`str` or `False`, *optional*):
            Column whose class shares are kept, or `False` for none. By default `label` or `labels`, if it holds
            classes.
        centred (`bool`, *optional*, defaults to `True`):
            Whether influence is centred and re-weighted by `n/(n-m)`, as retraining on fewer rows does; `False` takes
            the plain sum over the dropped rows.
        features (`str`, *optional*):
            Column of vectors that `"moderate"`, `"herding"` and `"kcenter"` measure distances in; by default the
            influence vectors.
        buckets (`int` or `str`, *optional*, defaults to `"auto"`):
            Number of parts that are solved on their own before the residual is carried through them; `"auto"` makes
            one of up to 20,000 rows, and of more rows parts of 10,000.
        column (`str`, *optional*, defaults to `"influence"`):
            The influence column.
        split (`str`, *optional*):
            The split of a `DatasetDict` to prune; the others stay as they are.
        seed (`int`, *optional*, defaults to 0):
            Breaks ties, and draws buckets and random subsets.

    Returns:
        [`PrunedDataset`]: The kept rows; `selection` holds their ids and the certificate. For a `DatasetDict`, the
        same dictionary with the pruned split.

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
    rows = part(dataset, split)
    selection = select(
        rows,
        keep,
        epsilon=epsilon,
        method=method,
        difficulty=difficulty,
        cost=cost,
        harmful=harmful,
        balance=balance,
        centred=centred,
        features=features,
        buckets=buckets,
        column=column,
        seed=seed,
    )
    pruned = PrunedDataset.from_source(rows, selection)
    return DatasetDict({**dataset, split: pruned}) if isinstance(dataset, DatasetDict) else pruned


def select(
    dataset: Dataset | DatasetDict,
    keep: float | int | None = None,
    *,
    epsilon: float | None = None,
    method: str = "influence",
    difficulty: str | float | None = "auto",
    cost: str | None = None,
    harmful: str = "keep",
    balance: str | bool | None = None,
    centred: bool = True,
    features: str | None = None,
    buckets: int | str = "auto",
    column: str = "influence",
    split: str | None = None,
    seed: int = 0,
) -> Selection:
    """
    Chooses rows as [`prune`] does, and returns the choice instead of a dataset.

    Args:
        dataset (`Dataset` or `DatasetDict`): See [`prune`], also for the other arguments.
        keep (`float` or `int`, *optional*): Share in (0, 1], or number of rows.
        epsilon (`float`, *optional*): Largest predicted shift.
        method (`str`, *optional*, defaults to `"influence"`): The method.
        difficulty (`str` or `float`, *optional*, defaults to `"auto"`): Which balanced subset.
        cost (`str`, *optional*): Column in the place of `difficulty`.
        harmful (`str`, *optional*, defaults to `"keep"`): Whether to drop harmful rows first.
        balance (`str` or `False`, *optional*): Column of the classes.
        centred (`bool`, *optional*, defaults to `True`): Whether to centre and re-weight.
        features (`str`, *optional*): Column of vectors for the methods that measure distances.
        buckets (`int` or `str`, *optional*, defaults to `"auto"`): Number of parts.
        column (`str`, *optional*, defaults to `"influence"`): The influence column.
        split (`str`, *optional*): The split of a `DatasetDict`.
        seed (`int`, *optional*, defaults to 0): Seed.

    Returns:
        [`Selection`]: Kept and dropped ids, certificate and arguments.
    """
    options = Options(
        keep, epsilon, method, difficulty, balance, buckets, column, seed, cost, harmful, features, centred
    )
    rows = part(dataset, split)
    problem = read_problem(rows, options.column, options.balance, options.centred)
    return solve.selection(problem, options, scoring_of(rows, options.column))


def part(dataset: Any, split: str | None) -> Any:
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


def scoring_of(dataset: Dataset, column: str) -> dict[str, Any] | None:
    """How `column` was scored, if the dataset knows; its info tells of the last scoring only."""
    scoring = getattr(dataset.info, "hf_prune", None)
    return scoring if scoring and scoring.get("influence", {}).get("column", column) == column else None
