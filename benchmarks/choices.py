"""
What the user's choices do to fidelity: window, snapshots and their precision, curvature, number of directions k.

Rows and groups of rows are left out of the window of a run of the real Trainer by a plain loop (see `peers/`), and
margins of test rows, or the length of the change of all their logits, are compared with what is predicted for them.
The effect of dropout is measured in `minilm.py`.

    python benchmarks/choices.py --profile full
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from datasets.utils import tqdm
from peers import ours
from peers.measures import fidelity, of_sets, pearson
from peers.recorded import Run, record
from peers.rerun import Network, train, window_batches
from peers.tasks import CIFAR, Task, mlp, vit
from peers.truth import leave_out, random_groups
from scipy.stats import spearmanr

from hf_prune import add_influence

PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"rows": 320, "left_out": 8, "groups": 4, "windows": (0.5,), "snapshots": (1, 4), "k": (16, 64)},
    "full": {
        "rows": 1000,
        "left_out": 32,
        "groups": 12,
        "windows": (0.1, 0.25, 0.5, 1.0),
        "snapshots": (0.5, 1, 2, 4),
        "k": (16, 32, 64, 128, 256),
    },
}
TESTS = 16
CURVATURES = ("exact", "gauss-newton", ours.PLAIN, "fisher", "none")


def kinds(task: Task, settings: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    n = len(task.train)
    singles = [np.array([row]) for row in np.random.default_rng(1).permutation(n)[: settings["left_out"]]]
    return {"single rows": singles, "groups of 20%": random_groups(n, 0.2, settings["groups"], seed=3)}


def recordings(task: Task, settings: dict[str, Any]) -> Iterator[tuple[str, Any, Run, tuple[str, ...]]]:
    """Which choice is looked at, its value, the run recorded so, and the curvatures to compare on it."""
    for window in settings["windows"]:
        with tempfile.TemporaryDirectory() as directory:
            # The curvatures are compared on the run with the default window.
            shown = CURVATURES if window == 0.5 else ("gauss-newton",)
            yield "window", window, record(task, Path(directory), window=window), shown
    for count in settings["snapshots"]:
        with tempfile.TemporaryDirectory() as directory:
            run = record(task, Path(directory), snapshots_per_epoch=count)
            yield "snapshots an epoch", count, run, ("exact", "gauss-newton")
    with tempfile.TemporaryDirectory() as directory:
        run = record(task, Path(directory), snapshot_dtype="bfloat16")
        yield "snapshots in", "bfloat16", run, ("exact", "gauss-newton")


def of_recordings(task: Task, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Margins of test rows without rows of the window."""
    rows, sets = [], kinds(task, settings)
    for choice, value, run, curvatures in tqdm(recordings(task, settings), desc=f"Choices on {task.name}"):
        truth = leave_out(run, [group for each in sets.values() for group in each])
        ends = np.cumsum([len(each) for each in sets.values()])
        shifts = dict(zip(sets, np.split(truth.shifts, ends[:-1]), strict=True))
        for curvature in curvatures:
            scores = ours.scores([run], mode="visits", curvature=curvature)
            for kind, groups in sets.items():
                found = fidelity(of_sets(scores, groups), shifts[kind], truth.base)
                rows.append(
                    {"run": task.name, "choice": choice, "value": value, "curvature": curvature, "left out": kind}
                    | {key: found[key] for key in ("margin_r", "margin_error", "loss_r")}
                )
    return rows


def of_directions(task: Task, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The length of the change of all test logits: of a row alone, and of a group by the sum of its rows' vectors."""
    rows, sets = [], kinds(task, settings)
    with tempfile.TemporaryDirectory() as directory:
        run = record(task, Path(directory))
        network, (x, _) = Network(run.logits_model()), task.test_tensors
        absent = [group for each in sets.values() for group in each]
        begin = run.thetas[run.first].expand(len(absent), -1)
        thetas = train(
            task,
            network,
            begin,
            window_batches(run, absent),
            moments=run.moments,
            updates=run.trajectory.updates_before(run.first),
        )
        with torch.no_grad():
            base = network.logits(run.last, x)
            # `influence` has the root mean square over test rows of the change of a row's logits as its length
            truth = torch.stack([(network.logits(t, x) - base).norm() / len(x) ** 0.5 for t in thetas]).numpy()
        for k in settings["k"]:
            scored = add_influence(
                task.train, run.trajectory, model=run.model, eval_dataset=task.test, directions=k, mode="visits"
            )
            vectors = np.array(scored["influence"])
            lengths = np.linalg.norm(of_sets(vectors, absent), axis=1)
            start = 0
            for kind, groups in sets.items():
                own = slice(start, start := start + len(groups))
                error = np.sqrt(np.square(lengths[own] / truth[own] - 1).mean())
                rows.append(
                    {
                        "run": task.name,
                        "choice": "k",
                        "value": k,
                        "left out": kind,
                        "length_r": pearson(lengths[own], truth[own]),
                        "length_rho": float(spearmanr(lengths[own], truth[own])[0]),
                        "length_error": float(error),
                    }
                )
    return rows


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    settings = PROFILES[profile]
    tasks = [mlp(settings["rows"], TESTS, "adamw")]
    if profile == "full" and CIFAR.exists():
        tasks.append(vit(settings["rows"], TESTS))
    rows = [row for task in tasks for row in (*of_recordings(task, settings), *of_directions(task, settings))]
    summary = {
        f"{row['run']}_{row['choice']}_{row['value']}_{row['left out']}".replace(" ", "_").replace(
            "/adamw", ""
        ): row.get("margin_r", row.get("length_rho"))
        for row in rows
        if row.get("curvature", "gauss-newton") == "gauss-newton"
    }
    return rows, summary


if __name__ == "__main__":
    main("choices", run)
