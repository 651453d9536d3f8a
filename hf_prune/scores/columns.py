"""`add_scores`: el2n, grand, forgetting, aum and the like as columns of a dataset."""

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

from hf_prune._core import compat
from hf_prune._core.columns import LAST_LAYER_INFLUENCE as LAST_LAYER
from hf_prune.errors import TrajectoryError
from hf_prune.influence.checks import check_dataset
from hf_prune.model.replay import Replay, row_positions
from hf_prune.scores import grand
from hf_prune.scores.formulas import FORMULAS, RowVisits, el2n
from hf_prune.scores.last_layer import last_layer_influence
from hf_prune.trajectory.trajectory import Trajectory
from hf_prune.trajectory.visits import read_visits

logger = logging.getLogger(__name__)

COLUMNS = ("el2n", "grand", "forgetting", "aum", "loss", "confidence", "variability")
# Columns made by another version of the computation must not pass for these.
VERSION = "scores/v1"
BATCH_SIZE = 32


def add_scores(
    dataset: Dataset,
    trajectory: str | Path | Trajectory,
    *,
    model: nn.Module | None = None,
    early: int = 10,
    last_layer: bool = False,
    batch_size: int | None = None,
    data_collator: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
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

    A row of tokens counts with the mean over its labelled tokens. A regression has the columns `loss` and `grand`
    alone. Rows that were never visited have NaN in all columns but `grand`, and a warning says how many they are.

    Args:
        dataset (`Dataset`):
            The rows that the Trainer got as `train_dataset`, in the same order; further columns are fine.
        trajectory (`str`, `Path` or `Trajectory`):
            What [`TrajectoryCallback`] recorded with `row_statistics=True`.
        model (`nn.Module`, *optional*):
            The trained model, for `grand` and `last_layer`. It is copied, and left as it is.
        early (`int`, *optional*, defaults to 10):
            Visits of a row that `el2n` is the mean over, counted from the first.
        last_layer (`bool`, *optional*, defaults to `False`):
            Whether to add `last_layer_influence`; takes a `model`.
        batch_size (`int`, *optional*, defaults to 32):
            Rows in one pass for `grand` and `last_layer`.
        data_collator (`Callable`, *optional*):
            As given to the Trainer, for `grand`.
        loss (`Callable`, *optional*):
            `(logits, labels) -> (batch,)` losses, for `grand` of a loss that is not the model's own.

    Returns:
        `Dataset`: the same rows with the columns, float32; the same call gives the same fingerprint.

    Raises:
        `TrajectoryError`: for a trajectory without row statistics, a damaged one, or one of another dataset.
        `TypeError`, `ValueError`: for arguments that cannot be worked with.
    """
    _check(dataset, early, batch_size)
    if last_layer and model is None:
        raise ValueError("last_layer=True needs the trained model: pass model=trainer.model.")
    record = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(trajectory)
    visits = read_visits(record)
    check_dataset(dataset, record)
    positions = row_positions(dataset, record)
    rows = visits.ids if positions is None else np.array([positions[int(i)] for i in visits.ids], dtype=np.int64)
    by_row = RowVisits(visits, rows, len(dataset))
    _warn_of_unvisited(by_row)
    found = {"el2n": el2n(by_row, early)} | {name: formula(by_row) for name, formula in FORMULAS.items()}
    key: list[Any] = [VERSION, record.digest, early]
    rows_at_once, replay = batch_size or BATCH_SIZE, None
    if model is not None:
        replay = Replay.of(dataset, record, model, data_collator=data_collator, loss=loss)
        file = grand.file_of(replay, data_collator, loss)
        found["grand"] = _grand(replay, file, rows_at_once)
        key.append(file.name)
    for name in COLUMNS:
        if name in found and not np.isnan(found[name]).all():
            fingerprint = Hasher.hash([compat.fingerprint(dataset), name, *key])
            values = pa.array(found[name].astype(np.float32), from_pandas=False)
            dataset = dataset.add_column(name, values, new_fingerprint=fingerprint, feature=Value("float32"))
    if last_layer and replay is not None:
        dataset = _with_last_layer(dataset, replay, rows_at_once, key)
    return dataset


def _with_last_layer(dataset: Dataset, replay: Replay, batch_size: int, key: list[Any]) -> Dataset:
    vectors = last_layer_influence(replay.objective, replay.theta(replay.last), replay.rows, batch_size)
    width = vectors.shape[1]
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    fingerprint = Hasher.hash([compat.fingerprint(dataset), LAST_LAYER, *key])
    return dataset.add_column(
        LAST_LAYER, values, new_fingerprint=fingerprint, feature=List(Value("float32"), length=width)
    )


def _grand(replay: Replay, file: Path, batch_size: int) -> np.ndarray:
    """The norms, which are kept in `file` once computed."""
    norms = grand.cached(file)
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


def _check(dataset: Any, early: Any, batch_size: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}; pass a datasets.Dataset, such as the split that was trained on."
        )
    taken = [name for name in (*COLUMNS, LAST_LAYER) if name in dataset.column_names]
    if taken:
        raise ValueError(f"The dataset has a column {taken[0]!r} already; remove or rename it first.")
    for name, value in (("early", early), ("batch_size", batch_size)):
        if not (name == "batch_size" and value is None) and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}.")
