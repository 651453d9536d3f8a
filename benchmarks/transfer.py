"""
Whether rows that one model chose serve another: chosen by the small network, learned by larger ones and other kinds.

The run is recorded and scored with the task's small network; what each method keeps is then learned by that network,
by larger ones and by other families, on the test rows. `gain` is the accuracy above that of as many random rows, over
pairs of the same seed; a seed deals out the rows and makes its own recorded run. Networks are trained as the small one
is, with its learning rate and number of epochs; nothing was tuned for them.

    python benchmarks/transfer.py --profile full --cifar FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from curves import FIRST_SEED, half_width
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from studies import retrain, scored_run
from study_tasks import Task, cifar_task, cnn, digits_task, mlp, reviews_task
from torch import nn

from hf_prune import select

METHODS = ("influence", "random", "ccs", "el2n")
RATES = (0.3, 0.5, 0.7)
TREES = 200
PROFILES: dict[str, dict[str, int]] = {
    "quick": {"digits": 2},
    "full": {"digits": 8, "reviews": 8, "cifar10": 3},
}
NETS: dict[str, dict[str, Callable[[], nn.Module] | None]] = {
    "digits": {
        "MLP 64 (chose)": None,
        "MLP 256 x 2": partial(mlp, 64, 256, 256, 10),
        "CNN": partial(cnn, 1, 8, 8),
    },
    "reviews": {"MLP 16 (chose)": None, "MLP 128 x 2": partial(mlp, 384, 128, 128, 2)},
    "cifar10": {"CNN (chose)": None, "MLP 256": partial(mlp, 768, 256, 10)},
}
"""What learns, by task; None is the network that was recorded."""


def learned_by(task: Task, subsets: list[np.ndarray], seed: int) -> dict[str, list[float]]:
    """Accuracies on the test rows, one a subset, by learner."""
    seeds = [seed] * len(subsets)
    found = {name: retrain(task, subsets, seeds, "test", net=net).tolist() for name, net in NETS[task.name].items()}
    others = {
        "random forest": lambda: RandomForestClassifier(TREES, random_state=seed),
        "logistic regression": lambda: LogisticRegression(max_iter=300),
    }
    for name, make in others.items():
        found[name] = [
            float(make().fit(task.train.x[rows], task.train.y[rows]).score(task.test.x, task.test.y))
            for rows in subsets
        ]
    return found


def measure(make: Callable[[int], Task], seeds: int) -> list[dict[str, Any]]:
    """One row for each rate, learner and method."""
    found: dict[tuple[float, str, str], list[float]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        task = make(seed)
        rows, _ = scored_run(task, seed=seed)
        for rate in RATES:
            kept = [select(rows, 1 - rate, method=method, seed=seed).keep_indices for method in METHODS]
            for learner, accuracies in learned_by(task, kept, seed).items():
                for method, accuracy in zip(METHODS, accuracies, strict=True):
                    found.setdefault((rate, learner, method), []).append(accuracy)
        print(f"{task.name}: seed {seed} done", file=sys.stderr, flush=True)
    result = []
    for (rate, learner, method), accuracies in found.items():
        gain = np.array(accuracies) - np.array(found[rate, learner, "random"])
        result.append(
            {
                "rate": rate,
                "learner": learner,
                "method": method,
                "accuracy": float(np.mean(accuracies)),
                "gain": float(gain.mean()),
                "interval": half_width(gain),
                "seeds": accuracies,
            }
        )
    return result


def run(profile: str, cifar: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    makers: dict[str, Callable[[int], Task]] = {"digits": digits_task, "reviews": reviews_task}
    if cifar is not None:
        makers["cifar10"] = lambda seed: cifar_task(cifar, seed=seed)
    rows = []
    for name, seeds in PROFILES[profile].items():
        if name not in makers:
            print(f"Skipping {name}: its data were not given.", file=sys.stderr)
            continue
        rows += [{"task": name} | row for row in measure(makers[name], seeds)]
    ours = [row for row in rows if row["method"] == "influence"]
    summary: dict[str, Any] = {}
    for row in ours:
        sure = abs(row["gain"]) > row["interval"]
        kind = "ties" if not sure else "wins" if row["gain"] > 0 else "losses"
        key = f"{row['task']}_{'own' if '(chose)' in row['learner'] else 'others'}"
        for each in ("wins", "ties", "losses"):
            summary[f"{key}_{each}"] = summary.get(f"{key}_{each}", 0) + (each == kind)
    return rows, summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cifar", type=Path, help="Parquet file of CIFAR-10: image.bytes, label, split")
    known, sys.argv[1:] = parser.parse_known_args()
    main("transfer", lambda profile: run(profile, known.cifar))
