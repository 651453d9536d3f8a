"""A scored dataset without a model: influence columns drawn at random, with the structure that real ones have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_prune.selection.problem import Problem, read_problem


def scored(
    rows: int = 400, k: int = 16, classes: int = 3, seed: int = 0, tail: float = 0.7, **columns: Any
) -> Dataset:
    """
    Influence that decays over latent directions, differs between classes and has a heavy tail over the rows.

    The k directions are random sketches of 60 latent ones, so audit directions tell of the others; `columns` replace
    drawn ones (`influence`, `label`, ...).
    """
    rng = np.random.default_rng(seed)
    sketch = rng.normal(size=(60, k)) / np.sqrt(k) / (1 + np.arange(60)[:, None])
    label = rng.integers(0, classes, rows)
    latent = rng.normal(size=(rows, 60)) + rng.normal(size=(classes, 60))[label]
    latent *= np.exp(tail * rng.normal(size=(rows, 1))) / rows
    influence = np.asarray(columns.get("influence", latent @ sketch), dtype="float32")
    drawn = {
        "text": [f"row {i}" for i in range(rows)],
        "label": label,
        "influence_norm": np.linalg.norm(influence, axis=1),
        "influence_eval_loss": latent[:, 0].astype("float32"),
    } | {name: values for name, values in columns.items() if name != "influence"}
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=[f"class {c}" for c in range(classes)]),
            "influence": List(Value("float32"), length=influence.shape[1]),
            "influence_norm": Value("float32"),
            "influence_eval_loss": Value("float32"),
        }
    )
    arrays = {name: pa.array(values) for name, values in drawn.items()}
    arrays["influence"] = pa.FixedSizeListArray.from_arrays(pa.array(influence.ravel()), influence.shape[1])
    table = pa.table({name: arrays[name] for name in features})
    return Dataset(table.cast(features.arrow_schema))


def with_scores(dataset: Dataset, seed: int = 0, **columns: Any) -> Dataset:
    """The dataset with the columns of `add_scores`, drawn at random; `columns` replace drawn ones."""
    rng = np.random.default_rng(seed)
    n = len(dataset)
    drawn = {
        "el2n": rng.random(n),
        "grand": rng.lognormal(size=n),
        "forgetting": rng.integers(0, 4, n),
        "aum": rng.normal(1.0, 1.0, n),
        "loss": rng.exponential(size=n),
        "confidence": rng.random(n),
        "variability": 0.5 * rng.random(n),
    } | columns
    for name, values in drawn.items():
        dataset = dataset.add_column(name, np.asarray(values, dtype="float32"))
    return dataset


def with_target(dataset: Dataset, seed: int = 0, **columns: Any) -> Dataset:
    """The dataset with the columns that methods for a target task read, drawn at random, or replaced by `columns`."""
    rng = np.random.default_rng(seed)
    n = len(dataset)
    drawn = {
        "less": rng.normal(size=n).astype("float32"),
        "rds": rng.uniform(-1, 1, (n, 5)).astype("float32"),
        "input_ids": [[7] * int(length) for length in rng.permutation(n)],
    } | columns
    for name, values in drawn.items():
        kind = List(Value("float32"), length=np.shape(values)[1]) if name == "rds" else None
        dataset = dataset.add_column(name, list(values), feature=kind)
    return dataset


def problem(balance: str | bool | None = None, **kwargs: Any) -> Problem:
    """The arrays of a scored dataset."""
    return read_problem(scored(**kwargs), "influence", balance)
