"""
What a probe takes on tasks that nothing in it was fitted to, what that is worth, and what it costs.

The runs, splits and rivals are those of `curves.py` with the same seeds. All candidates of a probe and random rows are
trained with the probe's seeds and measured on the dev rows, by the plain retraining of the studies instead of a
Trainer (`--collect`: one JSON line a place, which is appended to). From these figures the probe's own plan and tests
decide at each cost; what they take is measured on the test rows by the retrainings of `curves.py`. All in points of
accuracy on the test rows: `over_default`, `over_random`; `behind_best` is the best rival at the place minus the probed
choice, the rival chosen afterwards on the same test rows; `behind_member` the same for the best of the probe's own
candidates. Intervals are Student's t over tasks.

    python benchmarks/probes.py --data DATA --jobs 16 --collect places.jsonl
    python benchmarks/probes.py --profile full --places places.jsonl --out results/probes.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from common import main
from curves import FIRST_SEED, REPEATS, SMALL, half_width
from recipes import Recipe, recipes
from studies import predict, scored_run

from hf_prune import select
from hf_prune._core.config import SelectionConfig
from hf_prune.selection.evidence import BALANCED, RANDOM, preferred, weigh
from hf_prune.selection.family import PREFERENCES, family
from hf_prune.verification.probe import BLOCKS, plan, random_ids
from hf_prune.verification.probe import FIRST_SEED as PROBE_SEED

RATES, BUDGETS, SEEDS, TRIALS = (0.5, 0.7, 0.9), ("epochs", "steps"), 3, 8
COSTS = {"quick": (8.0,), "full": (4.0, 8.0, 12.0, 16.0)}
RESULTS = Path(__file__).parent / "results"


def collect(name: str, make: Recipe, seed: int) -> list[dict[str, Any]]:
    """At each rate and budget: which dev rows each arm got right with each of the probe's seeds; its test accuracy."""
    torch.set_num_threads(1)
    task = make(seed)
    rows, _ = scored_run(task, seed=seed, last_layer=True)
    repeats = [100 * seed + number for number in range(REPEATS if len(rows) <= SMALL else 1)]
    trials = [PROBE_SEED + number for number in range(TRIALS)]
    steps = task.epochs * -(-len(rows) // task.batch)
    found = []
    for rate in RATES:
        configs = family(SelectionConfig(keep=1 - rate, seed=seed), rows.column_names)
        kept = {key: select(rows, **config.changed()).keep_indices for key, config in configs.items()}
        arms = {key: [ids] * TRIALS for key, ids in kept.items()}
        arms[RANDOM] = [random_ids(len(rows), kept, trial) for trial in trials]
        tests = {**kept, RANDOM: select(rows, 1 - rate, method="random", seed=seed).keep_indices}
        for budget in BUDGETS:
            limit = steps if budget == "steps" else None
            dev = predict(task, [ids for arm in arms.values() for ids in arm], trials * len(arms), "dev", steps=limit)
            subsets = [ids for ids in tests.values() for _ in repeats]
            test = predict(task, subsets, repeats * len(tests), "test", steps=limit)
            answers = np.packbits(dev.reshape(len(arms), TRIALS, -1), axis=2)
            found.append(
                {"task": name, "seed": seed, "rate": rate, "budget": budget, "share": len(kept[BALANCED]) / len(rows)}
                | {"names": list(arms), "dev": answers.tobytes().hex(), "dev_rows": dev.shape[1]}
                | {"test": test.reshape(len(tests), -1).mean(axis=1).tolist()}
            )
    print(f"{name}: seed {seed} done", file=sys.stderr, flush=True)
    return found


def collect_all(file: Path, data: Path, cifar: Path | None, tasks: list[str] | None, jobs: int) -> None:
    """Appends every place that the file has not."""
    known = recipes(data, cifar)
    there = {(row["task"], row["seed"]) for row in read(file)}
    seeds = range(FIRST_SEED, FIRST_SEED + SEEDS)
    work = [(name, seed) for name in tasks or known for seed in seeds if (name, seed) not in there]
    parts = joblib.Parallel(jobs, return_as="generator_unordered")(
        joblib.delayed(collect)(name, known[name][1], seed) for name, seed in work
    )
    for part in parts:
        with file.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in part)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def blocks(place: dict[str, Any]) -> dict[str, np.ndarray]:
    """Accuracy of each arm on each block of dev rows, `(seeds, blocks)`, as a probe measures it."""
    packed = np.frombuffer(bytes.fromhex(place["dev"]), np.uint8).reshape(len(place["names"]), TRIALS, -1)
    right = np.unpackbits(packed, axis=2)[..., : place["dev_rows"]]
    parts = [right[..., first::BLOCKS].mean(axis=2) for first in range(BLOCKS)]
    return dict(zip(place["names"], np.stack(parts, axis=2), strict=True))


def taken(place: dict[str, Any], cost: float) -> tuple[str, float]:
    """What a probe takes that may cost so much, and what it cost."""
    share = 1.0 if place["budget"] == "steps" else place["share"]
    values = blocks(place)
    candidates = [name for name in (BALANCED, *PREFERENCES) if name in values]
    try:
        screened, duels = plan(len(candidates), cost / share)
    except ValueError:  # it does not pay for a comparison
        return BALANCED, 0.0
    duels = min(duels, TRIALS - 1)
    others = candidates[1 : 1 + screened]
    best = max(others, key=lambda name: values[name][0].mean())
    seeds = {name: 1 + duels if name in (best, BALANCED, RANDOM) else 1 for name in (BALANCED, RANDOM, *others)}
    found = weigh({name: values[name][:count] for name, count in seeds.items()}, 1)[0]
    return found.name if preferred(found) else BALANCED, sum(seeds.values()) * share


def rivals(task: str) -> dict[tuple[float, str], dict[str, list[float]]]:
    """Accuracies by seed of every method of `curves.py`, by rate and budget."""
    file = RESULTS / f"curves-{task}.json"
    found: dict[tuple[float, str], dict[str, list[float]]] = {}
    for row in json.loads(file.read_text())["rows"] if file.exists() else ():
        found.setdefault((row["rate"], row["budget"]), {})[row["method"]] = row["seeds"]
    return found


def of_task(places: Iterable[dict[str, Any]], cost: float) -> dict[str, Any]:
    """A task's figures, means over its places, in points."""
    gains: dict[str, list[float]] = {}
    others, costs, by_place = 0, [], {}
    for place in places:
        test = dict(zip(place["names"], place["test"], strict=True))
        name, spent = taken(place, cost)
        others += name != BALANCED
        costs.append(spent)
        key = (place["rate"], place["budget"])
        members = [value for member, value in test.items() if member != RANDOM]
        by_place.setdefault(key, []).append((test[name], test[BALANCED], test[RANDOM], members))
    known = rivals(place["task"])
    for key, found in by_place.items():
        probed, default, random = (float(np.mean([row[k] for row in found])) for k in range(3))
        member = float(np.mean([row[3] for row in found], axis=0).max())
        gains.setdefault("over_default", []).append(100 * (probed - default))
        gains.setdefault("over_random", []).append(100 * (probed - random))
        gains.setdefault("behind_member", []).append(100 * (member - probed))
        if key in known:
            best = max(np.mean(seeds[:SEEDS]) for method, seeds in known[key].items() if method != "influence")
            gains.setdefault("behind_best", []).append(100 * (float(best) - probed))
    figures = {name: float(np.mean(values)) for name, values in gains.items()}
    worst = {"worst_over_random": min(gains["over_random"])}
    return figures | worst | {"took_another": others / len(costs), "spent": float(np.mean(costs))}


def run(profile: str, file: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    places = read(file)
    rows, summary = [], {}
    for cost in COSTS[profile]:
        tasks = sorted({place["task"] for place in places})
        found = [of_task([place for place in places if place["task"] == task], cost) for task in tasks]
        rows += [{"cost": cost, "task": task} | figures for task, figures in zip(tasks, found, strict=True)]
        for name in ("over_default", "over_random", "behind_member", "behind_best"):
            values = np.array([figures[name] for figures in found if name in figures])
            summary[f"probe_{cost:g}_{name}"] = float(values.mean())
            summary[f"probe_{cost:g}_{name}_interval"] = half_width(values)
        summary[f"probe_{cost:g}_spent"] = float(np.mean([figures["spent"] for figures in found]))
    return rows, summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=Path("data"), help="what study_data.py made")
    parser.add_argument("--cifar", type=Path, help="as curves.py takes it")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--tasks", nargs="+", help="recipes to collect; by default all")
    parser.add_argument("--collect", type=Path, help="where to append the places' figures")
    parser.add_argument("--places", type=Path, help="what --collect wrote")
    known, sys.argv[1:] = parser.parse_known_args()
    if known.collect:
        collect_all(known.collect, known.data, known.cifar, known.tasks, known.jobs)
    else:
        main("probes", partial(run, file=known.places))
