"""
Could figures of a run tell which choice of rows is best, without a probe? Judged on data sets left out whole.

For every task and seed of `curves.py` the run is recorded and scored again, and ten figures of it are noted. A model
then predicts, from these, rate and budget, how much each method gains over the default; it is fitted on all data sets
but one, and on that one takes the method of the largest predicted gain (the default where none is above a margin).
`gain` is what that choice really gained there over the default; `best` is what the best method of each place, known
afterwards, would have.

    python benchmarks/rules.py --profile full --data DATA --results results --out results/rules.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from curves import FIRST_SEED
from datasets import Dataset
from recipes import recipes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from studies import scored_run

CHOICES = ("influence", "herding", "none", "el2n", "aum", "norm", "tdds", "iclr2023", "ccs", "moderate", "kcenter")
"""The default first."""
MARGINS = (0.0, 0.3, 1.0)
MOST = 5.0
"""Points at which gains are clipped for fitting: some methods lose fifty."""
MODELS: dict[str, Callable[[], Any]] = {
    "forest": lambda: RandomForestRegressor(300, min_samples_leaf=5, random_state=0),
    "ridge": lambda: make_pipeline(StandardScaler(), Ridge(10.0)),
}


def figures(rows: Dataset) -> list[float]:
    """What the columns of a scored run tell of it."""
    norm, effect, loss = (np.array(rows[c]) for c in ("influence_norm", "influence_eval_loss", "loss"))
    hardest = effect[np.argsort(-norm)[: len(norm) // 10]]
    classes = np.bincount(rows["labels"])
    return [
        float(norm.sum() ** 2 / (len(norm) * (norm**2).sum())),  # share of influential rows
        float((np.exp(-loss) > 0.5).mean()),  # rows that the model is sure of
        float(np.log(len(norm) / len(classes))),
        float(np.log(len(classes))),
        float(classes.max() / classes.min()),
        float((np.array(rows["aum"]) < 0).mean()),
        float(np.mean(rows["el2n"])),
        float(loss.mean()),
        float(np.mean(rows["forgetting"])),
        float(hardest.sum() / (hardest.std() * len(hardest) ** 0.5 + 1e-12)),  # do the hardest rows help
    ]


def places(data: Path, results: Path, seeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row for each task, seed, rate and budget: figures, gains over the default in points, and the data set."""
    features, gains, sets = [], [], []
    for name, (data_set, make) in recipes(data, None).items():
        file = results / f"curves-{name}.json"
        if not file.exists():
            continue
        found = [row for row in json.loads(file.read_text())["rows"] if row["rate"] > 0]
        for place in range(min(seeds, len(found[0]["seeds"]))):
            of_run = figures(scored_run(make(FIRST_SEED + place), seed=FIRST_SEED + place)[0])
            print(f"{name}: seed {FIRST_SEED + place} scored", file=sys.stderr, flush=True)
            for rate, budget in sorted({(row["rate"], row["budget"]) for row in found}):
                here = {r["method"]: r["seeds"][place] for r in found if (r["rate"], r["budget"]) == (rate, budget)}
                features.append([*of_run, rate, float(budget == "steps")])
                gains.append([100 * (here[method] - here[CHOICES[0]]) for method in CHOICES])
                sets.append(data_set)
    return np.array(features), np.array(gains), np.array(sets)


def run(profile: str, data: Path, results: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    features, gains, sets = places(data, results, 1 if profile == "quick" else 3)
    rows = []
    for model, make in MODELS.items():
        for margin in MARGINS:
            got: dict[str, np.ndarray] = {}
            for left_out in sorted(set(sets)):
                known = sets != left_out
                fitted = make().fit(features[known], np.clip(gains[known], -MOST, MOST))
                predicted = fitted.predict(features[~known])
                chosen = np.where(predicted.max(axis=1) > margin, predicted.argmax(axis=1), 0)
                got[left_out] = gains[~known][np.arange(len(chosen)), chosen]
            means = {name: float(values.mean()) for name, values in got.items()}
            rows.append(
                {
                    "model": model,
                    "margin": margin,
                    "gain": float(np.concatenate(list(got.values())).mean()),
                    "worst_data_set": min(means.values()),
                    "data_sets_below_default": sum(mean < 0 for mean in means.values()),
                    "data_sets": len(means),
                    "best": float(gains.max(axis=1).mean()),
                }
            )
    return rows, {"places": len(gains), "best_rule_gain": max(row["gain"] for row in rows)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=Path("data"), help="what study_data.py made")
    parser.add_argument("--results", type=Path, default=Path("results"), help="what curves.py measured")
    known, sys.argv[1:] = parser.parse_known_args()
    main("rules", lambda profile: run(profile, known.data, known.results))
