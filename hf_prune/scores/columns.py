"""`add_scores`: el2n, grand, forgetting, aum, less and the like as columns of a dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, List, Value
from datasets.fingerprint import Hasher
from torch import nn
from transformers import Trainer

from hf_prune._core import compat
from hf_prune._core.columns import LAST_LAYER_INFLUENCE as LAST_LAYER
from hf_prune._core.columns import LESS, RDS
from hf_prune.errors import TrajectoryError, UnsupportedError
from hf_prune.influence.checks import check_dataset
from hf_prune.model.micro_batches import rows_of_a_pass
from hf_prune.model.pairs import NO_STATISTICS
from hf_prune.model.replay import Replay, row_positions
from hf_prune.model.rows import Rows
from hf_prune.model.trainer import Given
from hf_prune.scores import grand, target
from hf_prune.scores.formulas import FORMULAS, RowVisits, el2n
from hf_prune.scores.last_layer import last_layer_influence
from hf_prune.trajectory.trajectory import Trajectory
from hf_prune.trajectory.visits import Visits, read_visits

logger = logging.getLogger(__name__)

COLUMNS = ("el2n", "grand", "forgetting", "aum", "loss", "confidence", "variability")
# Columns made by another version of the computation must not pass for these.
VERSION = "scores/v1"


def add_scores(
    dataset: Dataset | Trainer,
    trajectory: str | Path | Trajectory,
    *,
    model: nn.Module | None = None,
    eval_dataset: Dataset | None = None,
    early: int = 10,
    last_layer: bool = False,
    batch_size: int | None = None,
    data_collator: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    train_dataset: Dataset | Trainer | None = None,
    until: int | None = None,
) -> Dataset:
    """
    Adds the scores that data pruning is usually done by, from a run recorded with `row_statistics=True`.

    Every visit of a row in training counts, in training mode and with the parameters of the moment: where each row is
    visited once an epoch, "visit" below is "epoch".

    - `el2n` ([arXiv 2107.07075](https://hf.co/papers/2107.07075)): length of the predicted probabilities minus the
      one-hot label, mean over the row's `early` first visits.
    - `grand` (the same paper; only with a `model`): norm of the gradient of the row's loss over the recorded
      parameters, mean over up to 4 snapshots of the window. The paper takes it early in training, so record with
      `window=1.0` for that.
    - `forgetting` ([arXiv 1812.05159](https://hf.co/papers/1812.05159)): how often a right prediction was followed by
      a wrong one; for rows that were never right, the most visits of any row plus 1.
    - `aum` ([arXiv 2001.10528](https://hf.co/papers/2001.10528)): the label's logit minus the largest other one, mean
      over visits.
    - `loss`: at the last visit.
    - `confidence`, `variability` ([arXiv 2009.10795](https://hf.co/papers/2009.10795)): mean and standard deviation of
      the label's probability over visits.

    - `last_layer_influence` (only with `last_layer=True`): what removing the row would do to the last linear layer,
      weights and biases, by its inverse Hessian ([arXiv 2205.09329](https://hf.co/papers/2205.09329)); vectors of
      `classes * (inputs + 1)` numbers, for classifiers that end in a linear layer. `prune(method="iclr2023")` reads
      them.
    - `less` ([arXiv 2402.04333](https://hf.co/papers/2402.04333); only with an `eval_dataset`): cosine of the row's
      gradient, scaled as Adam scales it, with the mean gradient of the target task that the `eval_dataset` stands for,
      summed over the snapshots of the window, each times its learning rate.
    - `rds` ([arXiv 2503.01807](https://hf.co/papers/2503.01807); likewise): cosine of the row's last hidden states,
      their mean with the position as weight, with those of each row of the `eval_dataset`; of more than 64 rows, the
      mean over each of 64 groups of them. Not there for a model that does not end in a linear layer.

    `less` and `rds` need no row statistics: with an `eval_dataset`, a run that was recorded without them gets these
    two and `grand`.

    A row of tokens counts with the mean over its labelled tokens. A regression has the columns `loss` and `grand`
    alone, and a pair (of `DPOTrainer`, `RewardTrainer`) `grand` and, with an `eval_dataset`, `less`. Rows that were
    never visited have NaN in the columns of visits, and a warning says how many they are.

    Args:
        dataset (`Dataset` or `Trainer`):
            The rows that the Trainer got as `train_dataset`, in the same order; further columns are fine. Or the
            Trainer itself, whose `train_dataset`, `model`, `data_collator` and `eval_dataset` are then taken where no
            others are passed.
        trajectory (`str`, `Path` or `Trajectory`):
            What [`TrajectoryCallback`] recorded with `row_statistics=True`.
        model (`nn.Module`, *optional*):
            The trained model, for `grand`, `last_layer` and `eval_dataset`. It is copied, and left as it is.
        eval_dataset (`Dataset`, *optional*):
            Rows of a target task, for `less` and `rds`; takes a `model`.
        early (`int`, *optional*, defaults to 10):
            Visits of a row that `el2n` is the mean over, counted from the first.
        last_layer (`bool`, *optional*, defaults to `False`):
            Whether to add `last_layer_influence`; takes a `model`.
        batch_size (`int`, *optional*, defaults to 32):
            Rows in one pass for what takes a `model`.
        data_collator (`Callable`, *optional*):
            As given to the Trainer, for what takes a `model`.
        loss (`Callable`, *optional*):
            As in [`add_influence`], for `grand` and `less` of a loss that is not the model's own.
        train_dataset (`Dataset` or `Trainer`, *optional*):
            What the Trainer got, or the Trainer, where `dataset` holds other rows, such as a pool of candidates: these
            get `less` and `rds`.
        until (`int`, *optional*):
            Only the steps before this one count. By default all of them, and for what takes a `model` those up to
            the step whose parameters `model` has.

    Returns:
        `Dataset`: the same rows with the columns, float32; the same call gives the same fingerprint.

    Raises:
        `TrajectoryError`: for a trajectory without row statistics, a damaged one, or one of another dataset.
        `TypeError`, `ValueError`: for arguments that cannot be worked with.
    """
    given = Given.of(
        dataset, train_dataset=train_dataset, model=model, eval_dataset=eval_dataset, data_collator=data_collator
    )
    dataset, model, eval_dataset, data_collator = given.dataset, given.model, given.eval_dataset, given.data_collator
    if given.train_dataset is not None and (eval_dataset is None or last_layer):
        raise ValueError(
            "Rows that were not trained on get less and rds alone: pass rows of the target task as eval_dataset, and "
            "no last_layer."
        )
    _check(dataset, eval_dataset, early, batch_size)
    for name, asked in (("last_layer", last_layer), ("eval_dataset", eval_dataset is not None)):
        if asked and model is None:
            raise ValueError(f"{name} needs the trained model: pass model=trainer.model.")
    whole = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(trajectory)
    record = whole if until is None else whole.until(until)
    if given.train_dataset is not None:
        check_dataset(given.train_dataset, record)
        options: dict[str, Any] = {"data_collator": data_collator, "loss": loss}
        replay = Replay.of(given.train_dataset, whole, given.trained_model, **options)
        replay.end(until)
        at_once = rows_of_a_pass(batch_size, given.trained_model, whole.steps())
        return _of_candidates(dataset, replay, eval_dataset, at_once)
    of_pairs = record.manifest.pairs is not None
    if of_pairs and model is None:
        raise TrajectoryError(NO_STATISTICS)
    of_visits = not of_pairs and (record.manifest.row_statistics or eval_dataset is None)
    visits = read_visits(record) if of_visits else None
    check_dataset(dataset, record)
    found = {} if visits is None else _of_visits(dataset, record, visits, early)
    key: list[Any] = [VERSION, record.digest, early]
    at_once, run = 0, None
    if model is not None:
        at_once = rows_of_a_pass(batch_size, model, whole.steps())
        run = Replay.of(dataset, whole, model, data_collator=data_collator, loss=loss)
        run.end(until)
        file = grand.file_of(run, data_collator, loss)
        found["grand"] = _grand(run, file, at_once)
        key.append(file.name)
    for name in COLUMNS:
        if name in found and not np.isnan(found[name]).all():
            dataset = _with_numbers(dataset, name, found[name], key)
    if last_layer and run is not None:
        vectors = last_layer_influence(run.objective, run.theta(run.last), run.rows, at_once)
        dataset = _with_vectors(dataset, LAST_LAYER, vectors, key)
    if eval_dataset is not None and run is not None:
        dataset = _with_target(dataset, run, run.rows, run.rows.of(eval_dataset), at_once, key)
    return dataset


def _of_visits(dataset: Dataset, record: Trajectory, visits: Visits, early: int) -> dict[str, np.ndarray]:
    """The scores that are computed from the recorded visits."""
    positions = row_positions(dataset, record)
    rows = visits.ids if positions is None else np.array([positions[int(i)] for i in visits.ids], dtype=np.int64)
    by_row = RowVisits(visits, rows, len(dataset))
    _warn_of_unvisited(by_row)
    return {"el2n": el2n(by_row, early)} | {name: formula(by_row) for name, formula in FORMULAS.items()}


def _of_candidates(dataset: Dataset, replay: Replay, eval_dataset: Dataset, batch_size: int) -> Dataset:
    """The scores of rows that were not trained on."""
    key = [VERSION, replay.trajectory.digest, compat.fingerprint(replay.rows.dataset), replay.objective.digest()]
    return _with_target(dataset, replay, replay.rows.of(dataset), replay.rows.of(eval_dataset), batch_size, key)


def _with_target(dataset: Dataset, replay: Replay, rows: Rows, task: Rows, batch_size: int, key: list[Any]) -> Dataset:
    """Adds `less` and, where the model ends in a linear layer, `rds`."""
    key = [*key, compat.fingerprint(task.dataset)]
    dataset = _with_numbers(dataset, LESS, target.less(replay, rows, task, batch_size), key)
    try:
        return _with_vectors(dataset, RDS, target.rds(replay, rows, task, batch_size), key)
    except UnsupportedError as error:
        logger.warning(f"{error} There is no column {RDS!r}.")
        return dataset


def _with_numbers(dataset: Dataset, name: str, values: np.ndarray, key: list[Any]) -> Dataset:
    fingerprint = Hasher.hash([compat.fingerprint(dataset), name, *key])
    numbers = pa.array(values.astype(np.float32), from_pandas=False)
    return dataset.add_column(name, numbers, new_fingerprint=fingerprint, feature=Value("float32"))


def _with_vectors(dataset: Dataset, name: str, vectors: np.ndarray, key: list[Any]) -> Dataset:
    width = vectors.shape[1]
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    fingerprint = Hasher.hash([compat.fingerprint(dataset), name, *key])
    return dataset.add_column(name, values, new_fingerprint=fingerprint, feature=List(Value("float32"), length=width))


def _grand(replay: Replay, file: Path, batch_size: int) -> np.ndarray:
    """The norms, which are kept in `file` once computed."""
    norms = grand.cached(file, len(replay.rows))
    if norms is None:
        norms = grand.gradient_norms(replay, batch_size)
        grand.keep(file, norms)
    return norms


def _warn_of_unvisited(visits: RowVisits) -> None:
    missing = int((visits.counts == 0).sum())
    if missing == visits.n:
        raise TrajectoryError("The run visited no row, so there is nothing to score: train for at least one step.")
    if missing:
        logger.warning(
            f"{missing} of {visits.n} rows were never visited in training and have no scores (NaN): train for a whole "
            "epoch, or filter them out before pruning."
        )


def _check(dataset: Any, eval_dataset: Any, early: Any, batch_size: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}; pass a datasets.Dataset, such as the split that was trained on."
        )
    if eval_dataset is not None and not (isinstance(eval_dataset, Dataset) and len(eval_dataset)):
        raise TypeError("eval_dataset must be a datasets.Dataset with rows of the target task, or None.")
    taken = [name for name in (*COLUMNS, LAST_LAYER, LESS, RDS) if name in dataset.column_names]
    if taken:
        raise ValueError(f"The dataset has a column {taken[0]!r} already; remove or rename it first.")
    for name, value in (("early", early), ("batch_size", batch_size)):
        if not (name == "batch_size" and value is None) and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}.")
