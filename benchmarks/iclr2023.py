"""
The ICLR 2023 method, Yang et al., [arXiv 2205.09329](https://hf.co/papers/2205.09329), as a baseline, and what it
costs beside the whole pipeline of this library, on the same model and rows.

The influence of every row on the last layer, `H^-1 grad l_i / n`, by stochastic estimation (LiSSA), one recursion
of Hessian-vector products a row; then the subset of the wanted size whose summed influence is shortest, by
simulated annealing over swaps of a removed row with a kept one.

Compared from the trained model to the chosen rows, in CPU seconds and in Hessian-vector products. Theirs are of
the last layer's parameters, ours of all: `products` times `rows_a_product` times `parameters` is `product_work`.
Ours goes back over every recorded step with one vector a question. Theirs is run twice: with the recursion of the
authors' code (5,000 steps, thrice, one row a product, here for many rows at once, which spares it Python's time)
and with a lean one. Accuracy is of networks trained again on what each keeps, for equal epochs.

    python benchmarks/iclr2023.py --profile full --out FILE
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from studies import Classifier, recorded_run, retrain
from study_tasks import Arrays, Task, digits_task
from torch import nn

from hf_prune import add_influence, select
from hf_prune.scores import last_layer
from hf_prune.scores.last_layer import LEAN, Recursion
from hf_prune.selection.annealing import anneal
from hf_prune.trajectory.trajectory import Trajectory

PUBLISHED = Recursion(5000, 3, 1)
DIRECTIONS = 64
RATES = (0.3, 0.5, 0.7)
PROFILES = {
    "quick": {"seeds": 1, "theirs": {"lean": LEAN}},
    "full": {"seeds": 4, "theirs": {"lean": LEAN, "published": PUBLISHED}},
}
FIRST_SEED = 1000


def influences(model: Classifier, rows: Arrays, seed: int, how: Recursion = LEAN) -> np.ndarray:
    """Influence of removing each row on the last layer, `(n, p)`."""
    assert isinstance(model.net, nn.Sequential)
    with torch.no_grad():
        inputs = model.net[:-1](torch.tensor(rows.x))
        probabilities = model.net[-1](inputs).softmax(dim=1)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)  # the bias
    return last_layer.influences(inputs, probabilities, torch.tensor(rows.y), how, seed)


def theirs(task: Task, model: Classifier, how: Recursion, seed: int) -> dict[str, Any]:
    """Cost and kept rows of the ICLR 2023 method, by rate."""
    start = time.process_time()
    vectors = influences(model, task.train, seed, how)
    middle = time.process_time()
    kept = {rate: np.flatnonzero(~anneal(vectors, round(rate * len(vectors)), seed)[0]) for rate in RATES}
    products = len(vectors) * how.depth * how.repeats
    return _cost(middle - start, time.process_time() - middle, products, how.batch, vectors.shape[1], kept)


def ours(task: Task, model: Classifier, directory: Path, **options: Any) -> dict[str, Any]:
    """Cost and kept rows of this library, by rate, by default: from influence alone."""
    record, held_out = directory / "trajectory", task.held_out.dataset()
    start = time.process_time()
    rows = add_influence(
        task.train.dataset(), record, model=model, eval_dataset=held_out, directions=DIRECTIONS, **options
    )
    middle = time.process_time()
    kept = {rate: select(rows, 1 - rate).keep_indices for rate in RATES}
    end = time.process_time()
    first, last = Trajectory.open(directory / "trajectory").window
    steps = last - first
    parameters = sum(value.numel() for value in model.parameters())
    # one vector for each question and one for the held-out loss
    return _cost(middle - start, end - middle, steps * (DIRECTIONS + 1), task.batch, parameters, kept)


def _cost(
    scoring: float, selecting: float, products: int, rows: int, parameters: int, kept: dict[float, np.ndarray]
) -> dict[str, Any]:
    return {
        "cpu_seconds_scoring": scoring,
        "cpu_seconds_selecting": selecting / len(kept),
        "products": products,
        "rows_a_product": rows,
        "parameters": parameters,
        "product_work": float(products * rows * parameters),
        "kept": kept,
    }


def measure(seed: int, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Cost and accuracy of every method on one recorded run."""
    task = digits_task(seed)
    with tempfile.TemporaryDirectory() as directory:
        model = recorded_run(task, Path(directory), seed)
        found = {"ours": ours(task, model, Path(directory))}
        found["ours, fisher"] = ours(task, model, Path(directory), curvature="fisher")
    found |= {f"iclr2023, {name}": theirs(task, model, how, seed) for name, how in settings["theirs"].items()}
    rng, n = np.random.default_rng(seed), len(task.train.y)
    found["random"] = _cost(0.0, 0.0, 0, 0, 0, {rate: rng.permutation(n)[round(rate * n) :] for rate in RATES})
    seeds = [100 * seed, 100 * seed + 1]
    for figures in found.values():
        for rate, kept in figures.pop("kept").items():
            figures[f"accuracy_{rate}"] = float(retrain(task, [kept] * len(seeds), seeds, "test").mean())
    return found


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    settings = PROFILES[profile]
    seeds = [measure(FIRST_SEED + seed, settings) for seed in range(settings["seeds"])]
    rows = [
        {"method": method} | {key: float(np.mean([one[method][key] for one in seeds])) for key in seeds[0][method]}
        for method in seeds[0]
    ]
    by_name = {row["method"]: row for row in rows}
    own = by_name["ours"]
    summary: dict[str, Any] = {}
    for name in settings["theirs"]:
        other = by_name[f"iclr2023, {name}"]
        seconds = [row["cpu_seconds_scoring"] + row["cpu_seconds_selecting"] for row in (own, other)]
        summary[f"seconds_saved_{name}"] = 1 - seconds[0] / seconds[1]
        summary[f"products_saved_{name}"] = 1 - own["products"] / other["products"]
        summary[f"product_work_saved_{name}"] = 1 - own["product_work"] / other["product_work"]
        for rate in RATES:
            summary[f"accuracy_gain_{name}_{rate}"] = own[f"accuracy_{rate}"] - other[f"accuracy_{rate}"]
    return rows, summary


if __name__ == "__main__":
    main("iclr2023", run)
