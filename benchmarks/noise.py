"""
Wrong labels: which rows are called harmful, and accuracy without them.

A share of the training labels is replaced by other classes, evenly; held-out, dev and test rows keep theirs. On the
same recorded run, `harmful="drop"` is compared with the row's own loss, with the linear prediction of the held-out
loss, and with cleanlab's confident learning, which gets the run's own probabilities and, as its authors advise,
probabilities out of 5 folds (five more trainings).

`precision`: share of wrong labels among the rows that each method calls worst, as many as there are wrong labels.
`found`, `found_precision`, `found_recall`: the same for the rows that it names unasked. `accuracy`: of networks
retrained without the rows that it names (for scores that name none, without as many as there are wrong labels);
`accuracy_at_noise_rate`: without as many as there are wrong labels, by every method. A seed deals out the rows, draws
the wrong labels and makes the recorded run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from curves import half_width
from datasets import Dataset
from studies import Classifier, retrain, scored_run, train_one
from study_tasks import Arrays, Task, digits_task, mnist_task

from hf_prune import select
from hf_prune.selection.harm import find
from hf_prune.selection.problem import read_problem

NOISE = (0.1, 0.3)
FOLDS = 5
REPEATS = 2
FIRST_SEED = 2000
"""Seeds from here on were used by no study that the rule was made on, nor by an earlier version of it."""
PROFILES: dict[str, dict[str, int]] = {"quick": {"digits": 1}, "full": {"digits": 6, "mnist": 3}}


@dataclass(frozen=True)
class Finding:
    """Rows from the most to the least suspicious, and how many of them are named as wrong (None: not told)."""

    order: np.ndarray
    named: int | None


def flipped(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels of which a share is replaced by another class, evenly drawn."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(y))[: round(share * len(y))]
    changed = y.copy()
    changed[chosen] = (y[chosen] + rng.integers(1, 10, len(chosen))) % 10
    return changed


def findings(task: Task, rows: Dataset, model: Classifier) -> dict[str, Finding]:
    """What each method finds on one run."""
    harm = find(read_problem(rows, "influence", None))
    found = {
        "harmful": Finding(harm.order, harm.found),
        "loss": by(np.array(rows["loss"])),
        "el2n": by(np.array(rows["el2n"])),
        "aum": by(-np.array(rows["aum"])),
        "held-out loss": by(-np.array(rows["influence_eval_loss"])),
        "influence norm": by(np.array(rows["influence_norm"])),
    }
    with torch.no_grad():
        own = model(torch.tensor(task.train.x))["logits"].softmax(dim=1).numpy()
    return found | {
        "cleanlab, this run": cleanlab(task.train.y, own),
        "cleanlab, 5 folds": cleanlab(task.train.y, out_of_fold(task)),
    }


def by(score: np.ndarray) -> Finding:
    return Finding(np.argsort(-score, kind="stable"), None)


def cleanlab(labels: np.ndarray, probabilities: np.ndarray) -> Finding:
    """Confident learning with cleanlab's defaults."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    issues = find_label_issues(labels, probabilities, n_jobs=1)
    quality = get_label_quality_scores(labels, probabilities)
    return Finding(np.lexsort((quality, ~issues)), int(issues.sum()))


def out_of_fold(task: Task) -> np.ndarray:
    """Probabilities of each training row from a network that was trained without it, `(n, 10)`."""
    folds = np.array_split(np.random.default_rng(0).permutation(len(task.train.y)), FOLDS)
    found = np.empty((len(task.train.y), 10), dtype=np.float32)
    for number, fold in enumerate(folds):
        rest = np.setdiff1d(np.arange(len(found)), fold)
        with torch.no_grad():
            found[fold] = train_one(task, rest, number)(torch.tensor(task.train.x[fold])).softmax(dim=1).numpy()
    return found


def one_seed(task: Task, share: float, seed: int) -> list[dict[str, Any]]:
    """One row for each method at a share of wrong labels."""
    clean = task.train.y
    noisy = replace(task, train=Arrays(task.train.x, flipped(clean, share, seed)))
    wrong = noisy.train.y != clean
    rows, model = scored_run(noisy, seed=seed)
    everything = np.arange(len(clean))
    keep = select(rows, 1 - share, harmful="drop").keep_indices
    kept = {"all rows": everything, "only right labels": np.flatnonzero(~wrong), "prune at the noise rate": keep}
    result = []
    for method, finding in findings(noisy, rows, model).items():
        worst = finding.order[: wrong.sum()]
        named = worst if finding.named is None else finding.order[: finding.named]
        figures: dict[str, Any] = {"method": method, "precision": float(wrong[worst].mean())}
        if finding.named is not None:
            figures["found"] = finding.named
            figures["found_precision"] = float(wrong[named].mean()) if len(named) else float("nan")
            figures["found_recall"] = float(wrong[named].sum() / wrong.sum())
        without = {
            "accuracy": accuracy(noisy, np.setdiff1d(everything, named), seed),
            "accuracy_at_noise_rate": accuracy(noisy, np.setdiff1d(everything, worst), seed),
        }
        result.append(figures | without)
    return result + [{"method": name, "accuracy": accuracy(noisy, ids, seed)} for name, ids in kept.items()]


def accuracy(task: Task, kept: np.ndarray, seed: int) -> float:
    """On the test rows, for as many steps as all rows make: rows alone differ, not the budget."""
    steps = task.epochs * -(-len(task.train.y) // task.batch)
    seeds = [100 * seed + number for number in range(REPEATS)]
    return float(retrain(task, [kept] * REPEATS, seeds, "test", steps=steps).mean())


def measure(make: Callable[[int], Task], share: float, seeds: int) -> list[dict[str, Any]]:
    """The means over the seeds, each with rows, wrong labels and a run of its own, and half of the 95 % interval."""
    every = [one_seed(make(seed), share, seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds)]
    result = []
    for same in zip(*every, strict=True):
        row = {"method": same[0]["method"], "seeds": [one["accuracy"] for one in same]}
        row |= {key: float(np.mean([one[key] for one in same])) for key in same[0] if key != "method"}
        row["interval"] = half_width(np.array(row["seeds"]))
        result.append(row)
    return result


def run(profile: str, mnist: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    makers: dict[str, Callable[[int], Task]] = {"digits": digits_task}
    if mnist is not None:
        makers["mnist"] = lambda seed: mnist_task(mnist, 4_000, seed)
    rows = []
    for name, seeds in PROFILES[profile].items():
        if name not in makers:
            print(f"Skipping {name}: its directory was not given.", file=sys.stderr)
            continue
        for share in NOISE:
            rows += [{"task": name, "noise": share} | row for row in measure(makers[name], share, seeds)]
    summary = {
        f"{row['task']}_{int(100 * row['noise'])}_{row['method'].replace(', ', '_').replace(' ', '_')}_{key}": row[key]
        for row in rows
        for key in ("precision", "accuracy")
        if key in row and row["method"] in ("harmful", "loss", "cleanlab, this run", "cleanlab, 5 folds")
    }
    return rows, summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--mnist", type=Path, help="directory of MNIST's four idx files, not compressed")
    known, sys.argv[1:] = parser.parse_known_args()
    main("noise", lambda profile: run(profile, known.mnist))
