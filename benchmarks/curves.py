"""
Accuracy of retrained networks against the share of rows pruned, for every method, beside random subsets.

The recorded run goes through the real Trainer, `TrajectoryCallback`, `add_influence` and `add_scores`; networks are
retrained in plain torch with the same optimizer, for equal epochs (less rows, less steps) and, where a profile says
so, for equal steps. A seed is an experiment of its own: it deals out the rows, draws the recorded run, the random part
of every selection, and the weights and the order of rows of each retraining (`repeats` of them, averaged).

Rows: train (pruned), held out (influence is asked on them), dev (choices were made on them, with other seeds), test
(the figures; never dealt out as others). `ccs` cuts the published shares of CIFAR-10; its other cuts are shown as
`ccs-0.0` and so on, and the best of all rivals on the test rows is what the default is compared with, which favours
the rival. A win or a loss is a difference beyond its 95 % interval, which takes both seeds and test rows as drawn:
every method answers the same rows after the same seeds. `behind` is the default's accuracy minus the method's.

    python benchmarks/curves.py --profile full --task digits --out results/curves-digits.json
    python benchmarks/curves.py --profile full --task reviews --out results/curves-reviews.json
    python benchmarks/curves.py --profile full --task mnist --mnist DIRECTORY --out results/curves-mnist.json
    python benchmarks/curves.py --profile full --task cifar10 --cifar FILE --out results/curves-cifar10.json
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
from datasets import Dataset
from iclr2023 import anneal, influences
from scipy import stats
from studies import Classifier, predict, scored_run
from study_tasks import Task, cifar_task, digits_task, mnist_task, reviews_task

from hf_prune import select
from hf_prune._core.config import SelectionConfig
from hf_prune.selection.method import METHODS
from hf_prune.selection.methods.ccs import ccs
from hf_prune.selection.problem import read_problem

RATES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
CUTS = (0.0, 0.1, 0.2, 0.3, 0.5)
LOSSLESS = 0.003
FEW = (
    "influence",
    "random",
    "stratified",
    "el2n",
    "aum",
    "ccs",
    "ccs-0.1",
    "ccs-0.3",
    "moderate",
    "herding",
    "iclr2023",
)
"""Where a network is dear to train; the methods left out rank hard rows first, as EL2N and AUM do."""
FIRST_SEED = 1000
"""Seeds from here on were used by no study that a rule was made on."""
SECOND_SEED = 4000
"""Seeds since the rule for saturated models was changed, on dev rows, after two looks at digits' test rows."""
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {"digits": {"seeds": 2, "repeats": 1, "rates": (0.3, 0.7), "budgets": ("epochs",)}},
    "full": {
        "digits": {
            "seeds": 8,
            "repeats": 2,
            "rates": RATES,
            "budgets": ("epochs", "steps"),
            "first": SECOND_SEED,
        },
        "reviews": {"seeds": 8, "repeats": 2, "rates": RATES, "budgets": ("epochs", "steps")},
        "cifar10": {"seeds": 3, "repeats": 1, "rates": RATES, "budgets": ("epochs",), "methods": FEW},
        "mnist": {"seeds": 4, "repeats": 1, "rates": RATES, "budgets": ("epochs",)},
    },
}

Chooser = Callable[[float], np.ndarray]


def choosers(rows: Dataset, task: Task, model: Classifier, seed: int) -> dict[str, Chooser]:
    """Every method as a function from a rate to the rows that are kept."""
    problem = read_problem(rows, "influence", None)

    def by_method(rate: float, method: str, **options: Any) -> np.ndarray:
        return select(rows, 1 - rate, method=method, seed=seed, **options).keep_indices

    def by_cut(rate: float, cut: float) -> np.ndarray:
        config = SelectionConfig(keep=1 - rate, seed=seed)
        return np.flatnonzero(~ccs(problem, len(rows) - config.kept_rows(len(rows)), config, cut=cut).dropped)

    last_layer = influences(model, task.train, seed)

    def by_last_layer(rate: float) -> np.ndarray:
        kept = SelectionConfig(keep=1 - rate).kept_rows(len(rows))
        return np.flatnonzero(~anneal(last_layer, len(rows) - kept, seed)[0])

    found: dict[str, Chooser] = {method: partial(by_method, method=method) for method in METHODS}
    found |= {f"ccs-{cut}": partial(by_cut, cut=cut) for cut in CUTS}
    for method in ("herding", "kcenter", "moderate"):
        found[f"features-{method}"] = partial(by_method, method=method, features="x")
    return found | {"iclr2023": by_last_layer}


def measure(make: Callable[[int], Task], settings: dict[str, Any], on: str, first: int) -> list[dict[str, Any]]:
    """One row for each rate, budget and method."""
    right: dict[tuple[float, str, str], list[np.ndarray]] = {}
    for seed in range(first, first + settings["seeds"]):
        task = make(seed)
        rows, model = scored_run(task, seed=seed)
        for key, found in one_seed(task, rows, model, settings, on, seed).items():
            right.setdefault(key, []).append(found)
        print(f"{task.name}: seed {seed} done", file=sys.stderr, flush=True)
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


def one_seed(
    task: Task, rows: Dataset, model: Classifier, settings: dict[str, Any], on: str, seed: int
) -> dict[tuple[float, str, str], np.ndarray]:
    """How often each test row is right over the repeats, `(rows,)`, by rate, budget and method."""
    repeats = [100 * seed + number for number in range(settings["repeats"])]
    methods = choosers(rows, task, model, seed)
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


def maker(name: str, mnist: Path | None, cifar: Path | None) -> Callable[[int], Task]:
    """The task as a function of the seed."""
    if name == "mnist":
        if mnist is None:
            raise SystemExit("MNIST is not shipped: pass --mnist DIRECTORY.")
        return lambda seed: mnist_task(mnist, seed=seed)
    if name == "cifar10":
        if cifar is None:
            raise SystemExit("CIFAR-10 is not shipped: pass --cifar FILE.")
        return lambda seed: cifar_task(cifar, seed=seed)
    return {"digits": digits_task, "reviews": reviews_task}[name]


def run(profile: str, name: str, make: Callable[[int], Task]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    settings = PROFILES[profile][name]
    found = measure(make, settings, "test", settings.get("first", FIRST_SEED))
    return [{"task": name} | row for row in found], summarise(name, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--task", choices=PROFILES["full"], default="digits")
    parser.add_argument("--mnist", type=Path, help="directory of MNIST's four idx files, not compressed")
    parser.add_argument("--cifar", type=Path, help="Parquet file of CIFAR-10: image.bytes, label, split")
    known, sys.argv[1:] = parser.parse_known_args()
    make = maker(known.task, known.mnist, known.cifar)
    main("curves", lambda profile: run(profile, known.task, make))
