"""
Accuracy of retrained networks against the share of rows pruned, for every method, beside random subsets.

The recorded run goes through the real Trainer, `TrajectoryCallback`, `add_influence` and `add_scores`; networks are
retrained in plain torch with the same optimizer, for equal epochs (less rows, less steps) and for equal steps. A seed
draws the weights and the order of rows of a retraining, and the random part of a selection.

Rows: train (pruned), held out (influence is asked on them), dev (choices were made on them, in runs with other
seeds), test (the figures). `ccs` cuts the published shares of CIFAR-10; its other cuts are shown as `ccs-0.0` and so
on, and the best of them on the test rows counts as a rival, which favours it. The default is compared with the
rival of the best mean, in pairs of the same seed: a win or a loss is a difference beyond its 95 % interval.

    python benchmarks/curves.py --profile full --mnist DIRECTORY --cifar FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from datasets import Dataset
from iclr2023 import select_iclr2023
from scipy import stats
from studies import Classifier, Task, cifar_task, digits_task, mnist_task, retrain, scored_run

from hf_prune import select
from hf_prune.selection.baselines import ccs
from hf_prune.selection.methods import METHODS
from hf_prune.selection.options import Options
from hf_prune.selection.problem import read_problem

RATES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
CUTS = (0.0, 0.1, 0.2, 0.3, 0.5)
DRAWN = ("random", "stratified", "ccs", "forgetting")
"""Methods whose rows depend on the seed; `forgetting` by its many ties."""
LOSSLESS = 0.003
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"digits": {"seeds": 3, "rates": (0.3, 0.7), "steps": False}},
    "full": {
        "digits": {"seeds": 8, "rates": RATES, "steps": True},
        "mnist": {"seeds": 4, "rates": RATES, "steps": True},
        "cifar10": {"seeds": 3, "rates": RATES, "steps": False},
    },
}

Chooser = Callable[[float, int], np.ndarray]


def choosers(rows: Dataset, task: Task, model: Classifier) -> dict[str, Chooser]:
    """Every method as a function from a rate and a seed to the rows that are kept."""
    problem = read_problem(rows, "influence", None)

    def by_method(method: str, **options: Any) -> Chooser:
        return lambda rate, seed: select(rows, 1 - rate, method=method, seed=seed, **options).keep_indices

    def by_cut(cut: float) -> Chooser:
        def choose(rate: float, seed: int) -> np.ndarray:
            dropped = len(rows) - Options(keep=1 - rate).kept_rows(len(rows))
            return np.flatnonzero(~ccs(problem, dropped, Options(keep=1 - rate, seed=seed), cut=cut).dropped)

        return choose

    found = {method: by_method(method) for method in METHODS}
    found |= {f"ccs-{cut}": by_cut(cut) for cut in CUTS}
    found["features-herding"] = by_method("herding", features="x")
    found["features-kcenter"] = by_method("kcenter", features="x")
    found["features-moderate"] = by_method("moderate", features="x")
    found["iclr2023"] = lambda rate, seed: select_iclr2023(model, task.train, rate, seed=seed).keep
    return found


def measure(task: Task, rows: Dataset, model: Classifier, settings: dict[str, Any], on: str) -> list[dict[str, Any]]:
    """One row for each rate, method and budget, with the accuracies of all seeds."""
    seeds = list(range(settings["seeds"]))
    every = [np.arange(len(rows))] * len(seeds)
    steps = task.epochs * -(-len(rows) // task.batch)
    found = [entry(0.0, "full", "epochs", retrain(task, every, seeds, on))]
    for rate in settings["rates"]:
        for method, choose in choosers(rows, task, model).items():
            drawn = method.split("-")[0] in DRAWN
            kept = [choose(rate, seed) for seed in (seeds if drawn else seeds[:1])]
            kept = kept if drawn else kept * len(seeds)
            for budget in ("epochs", "steps") if settings["steps"] else ("epochs",):
                accuracies = retrain(task, kept, seeds, on, steps=steps if budget == "steps" else None)
                found.append(entry(rate, method, budget, accuracies))
        print(f"{task.name}: rate {rate} done", file=sys.stderr, flush=True)
    return found


def entry(rate: float, method: str, budget: str, accuracies: np.ndarray) -> dict[str, Any]:
    half = half_width(accuracies)
    return {
        "rate": rate, "method": method, "budget": budget, "accuracy": float(accuracies.mean()), "interval": half,
        "seeds": accuracies.tolist(),
    }  # fmt: skip


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def summarise(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Wins, ties and losses of the default against the best rival of each rate and budget, and against random."""
    full = found[0]
    counts = {"wins": 0, "ties": 0, "losses": 0}
    below_random, lossless = 0, 0.0
    for rate, budget in sorted({(row["rate"], row["budget"]) for row in found[1:]}):
        here = {row["method"]: row for row in found if (row["rate"], row["budget"]) == (rate, budget)}
        own = here.pop("influence")
        best = max(here.values(), key=lambda row: row["accuracy"])
        difference = np.array(own["seeds"]) - np.array(best["seeds"])
        sure = abs(difference.mean()) > half_width(difference)
        counts["ties" if not sure else "wins" if difference.mean() > 0 else "losses"] += 1
        gap = np.array(own["seeds"]) - np.array(here["random"]["seeds"])
        below_random += bool(gap.mean() < 0 and abs(gap.mean()) > half_width(gap))
        if budget == "epochs" and own["accuracy"] >= full["accuracy"] - LOSSLESS:
            lossless = rate
    figures = counts | {"below_random": below_random, "lossless_rate": lossless}
    return {f"{name}_{key}": value for key, value in figures.items()}


def tasks(profile: str, mnist: Path | None, cifar: Path | None) -> dict[str, Callable[[], Task]]:
    """The tasks of a profile whose data are there."""
    found: dict[str, Callable[[], Task]] = {"digits": digits_task}
    if mnist is not None:
        found["mnist"] = lambda: mnist_task(mnist)
    if cifar is not None:
        found["cifar10"] = lambda: cifar_task(cifar)
    for name in PROFILES[profile].keys() - found.keys():
        print(f"Skipping {name}: its data were not given.", file=sys.stderr)
    return {name: make for name, make in found.items() if name in PROFILES[profile]}


def run(profile: str, mnist: Path | None, cifar: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    rows, summary = [], {}
    for name, make in tasks(profile, mnist, cifar).items():
        task = make()
        scored, model = scored_run(task)
        found = measure(task, scored, model, PROFILES[profile][name], "test")
        summary |= summarise(name, found)
        rows += [{"task": name} | row for row in found]
    return rows, summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--mnist", type=Path, help="directory of MNIST's four idx files, not compressed")
    parser.add_argument("--cifar", type=Path, help="Parquet file of CIFAR-10: image.bytes, label, split")
    known, sys.argv[1:] = parser.parse_known_args()
    main("curves", lambda profile: run(profile, known.mnist, known.cifar))
