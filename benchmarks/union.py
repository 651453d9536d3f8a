"""
Whether scores of several recorded runs choose better rows than those of one: digits, dev rows.

For every seed the same rows are trained on from three seeds of weights and order, recorded and scored each. `one` is
the default on the first run's columns; `three` on the three runs' vectors side by side, with the norm of the whole and
the mean of the predicted losses; `union` keeps the rows that most of the three runs' own choices hold.

    python benchmarks/union.py --profile full
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import main
from curves import half_width
from datasets import Dataset, Features, List, Value
from studies import retrain, scored_run
from study_tasks import digits_task

from hf_prune import select

RUNS = 3
RATES = (0.3, 0.5, 0.7, 0.9)
FIRST_SEED = 3000
REPEATS = 2
PROFILES = {"quick": 2, "full": 4}


def side_by_side(scored: Sequence[Dataset]) -> Dataset:
    """The rows with the runs' influence in one column."""
    table = [rows.with_format("numpy") for rows in scored]
    vectors = np.concatenate([rows["influence"] for rows in table], axis=1) / len(table) ** 0.5
    columns = {
        "influence": vectors.astype("float32"),
        "influence_norm": np.linalg.norm(vectors, axis=1).astype("float32"),
        "influence_eval_loss": np.mean([rows["influence_eval_loss"] for rows in table], axis=0).astype("float32"),
    }
    kinds = Features(
        {
            "influence": List(Value("float32"), length=vectors.shape[1]),
            "influence_norm": Value("float32"),
            "influence_eval_loss": Value("float32"),
            "labels": scored[0].features["labels"],
        }
    )
    return Dataset.from_dict(columns | {"labels": scored[0]["labels"]}, features=kinds)


def most_votes(scored: Sequence[Dataset], rate: float, seed: int) -> np.ndarray:
    """As many rows as one choice keeps, those that most choices hold; ties by the seed."""
    kept = [select(rows, 1 - rate, seed=seed).keep_indices for rows in scored]
    votes = np.bincount(np.concatenate(kept), minlength=len(scored[0])) + np.random.default_rng(seed).random(
        len(scored[0])
    )
    return np.sort(np.argsort(-votes)[: len(kept[0])])


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    found: dict[tuple[float, str], list[float]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + PROFILES[profile]):
        task = digits_task(seed)
        scored = [scored_run(task, seed=seed + 10_000 * number)[0] for number in range(RUNS)]
        whole = side_by_side(scored)
        for rate in RATES:
            chosen = {
                "one": select(scored[0], 1 - rate, seed=seed).keep_indices,
                "three": select(whole, 1 - rate, seed=seed).keep_indices,
                "union": most_votes(scored, rate, seed),
            }
            seeds = [100 * seed + number for number in range(REPEATS)]
            for name, kept in chosen.items():
                found.setdefault((rate, name), []).append(float(retrain(task, [kept] * REPEATS, seeds, "dev").mean()))
    rows, summary = [], {}
    for (rate, name), accuracies in found.items():
        gain = np.array(accuracies) - np.array(found[rate, "one"])
        rows.append(
            {
                "rate": rate,
                "method": name,
                "accuracy": float(np.mean(accuracies)),
                "gain": float(gain.mean()),
                "interval": half_width(gain),
                "seeds": accuracies,
            }
        )
        if name != "one":
            summary[f"gain_{name}_{rate}"] = float(gain.mean())
    return rows, summary


if __name__ == "__main__":
    main("union", run)
