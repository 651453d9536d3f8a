"""Scored datasets to publish: random influence columns, and the record of a run as `add_influence` leaves it."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_prune._core.config import ScoringConfig
from hf_prune._core.records import RecordedRun, ScoringRecord
from hf_prune._core.scoring import with_scoring

DIRECTIONS = 16
SCORES = ("influence", "influence_norm", "influence_eval_loss")


def plain(rows: int = 60, seed: int = 0) -> Dataset:
    """Rows with a text, a class, a vector and a value that may be missing."""
    rng = np.random.default_rng(seed)
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=["neg", "pos"]),
            "x": List(Value("float32"), length=3),
            "year": Value("int32"),
        }
    )
    columns = {
        "text": [f"row {i} — “{'ab' * (i % 5)}”" for i in range(rows)],
        "label": [i % 2 for i in range(rows)],
        "x": rng.normal(size=(rows, 3)).astype("float32").tolist(),
        "year": [None if i % 7 == 0 else 1990 + i for i in range(rows)],
    }
    return Dataset.from_dict(columns, features=features)


def manifest(**changes: Any) -> dict[str, Any]:
    """The manifest of a run, as JSON holds it."""
    group = {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "decoupled_weight_decay": True}
    return {
        "schema_version": 1,
        "run_id": "0123456789abcdef",
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "model": {"class": "BertForSequenceClassification", "name_or_path": "google-bert/bert-base-uncased"},
        "optimizer": {"name": "AdamW", "groups": [group]},
        "parameters": [{"name": "w", "shape": [4, 5], "group": 0}, {"name": "b", "shape": [5], "group": 0}],
        "n_rows": 60,
        "dataset_columns": {},
        "dataset_fingerprint": "f00",
        "id_column": None,
        "world_size": 1,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 1.0,
        "precision": "no",
        "seeds": {"seed": 42, "data_seed": None},
        "total_steps": 30,
        "steps_per_epoch": 10,
        "window_start": 15,
        "snapshot_dtype": "float32",
        "updates_before_start": 0,
        "loss": "model",
        "complete": True,
        "last_step": 30,
        "stopped": None,
    } | changes


def scored(dataset: Dataset | None = None, seed: int = 0, run: dict[str, Any] | None = None) -> Dataset:
    """The dataset with influence columns; `run` is the manifest of the run that they came from, if it is known."""
    dataset = plain() if dataset is None else dataset
    rng = np.random.default_rng(seed)
    influence = rng.normal(size=(len(dataset), DIRECTIONS)).astype("float32")
    values = (influence, np.linalg.norm(influence, axis=1), rng.normal(size=len(dataset)).astype("float32"))
    for name, column in zip(SCORES, values, strict=True):
        kind = List(Value("float32"), length=DIRECTIONS) if column.ndim == 2 else Value("float32")
        dataset = dataset.add_column(name, list(column), feature=kind)
    if run is None:
        return dataset
    config = ScoringConfig(
        version="influence/v1", curvature="gauss-newton", directions=DIRECTIONS, eval_digest="e" * 64
    )
    return with_scoring(dataset, ScoringRecord(config, RecordedRun.of("d" * 64, run), 0.5, 0.02))


OBSERVED = {
    "metric": "accuracy",
    "full": 0.9,
    "pruned": 0.895,
    "random": 0.86,
    "gap": 0.005,
    "random_gap": 0.04,
    "interval": [-0.01, 0.02],
    "seeds": 5,
    "protocol": "equal epochs",
    "greater_is_better": True,
    "loss_change": 0.031,
    "loss_interval": [0.011, 0.051],
    "random_loss_change": 0.12,
    "seconds_full": 100.0,
    "seconds_pruned": 52.0,
    "seconds_random": 51.0,
    "beside_random": 0.035,
    "beside_random_interval": [0.01, 0.06],
}
"""What `verify` measured, in the words that `provenance.build` takes."""
