"""
What scoring costs: time in units of the recorded training run, and peak memory, ours and the other libraries'.

Everything runs on the same rows, with one thread, each measurement in a fresh process. Time is the processor's, so
that what else runs on the machine counts less. Training is the Trainer with our callback. Ours is `add_influence` as
it is called without options, 64 questions and the held-out loss; the other libraries answer for 64 test rows, in the
settings of `fidelity.py`. Imports, loading the data and, for methods that need checkpoints, writing them are not
counted. A further model is one more entry of `MODELS`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import main, peak_memory
from peers.recorded import arguments, opened, record
from peers.study import NAMES, VARIANT, others
from peers.tasks import Task, minilm, mlp, vit
from transformers import Trainer, set_seed

from hf_prune import TrajectoryCallback, add_influence

TESTS = 64
MODELS: dict[str, Callable[[], Task]] = {
    "mlp": partial(mlp, rows=1097, tests=TESTS, optimizer="adamw"),
    "vit": partial(vit, rows=1000, tests=TESTS),
    "minilm": partial(minilm, rows=640, tests=TESTS),
}
# It is run on the MLP only; see fidelity.py.
SLOW = dict.fromkeys(("vit", "minilm"), ("influence function (dattri)",))
# Models, repeats, other libraries' methods.
PROFILES: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "quick": (("mlp",), 1, NAMES[1:2]),
    "full": (tuple(MODELS), 1, tuple(name for name in NAMES if name != VARIANT)),
}
OURS = {"hf_prune": {}, "hf_prune, fisher": {"curvature": "fisher"}}


def train(task: Task, directory: Path) -> float:
    """The seconds of a training run that our callback records."""
    set_seed(0)
    recorder = TrajectoryCallback(directory / "timed")
    trainer = Trainer(task.model(), arguments(task, directory, 0), train_dataset=task.train, callbacks=[recorder])
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def save(task: Task, directory: Path) -> float:
    """Writes what the methods need: the record, the model and its checkpoints."""
    record(task, directory)
    return 0.0


def score(task: Task, directory: Path, method: str) -> float:
    """The seconds of one scoring."""
    run = opened(task, directory)
    task.train_tensors, task.test_tensors  # noqa: B018 (made once, before the clock starts)
    settings = {} if method in OURS or method == "nothing" else others((method,))[method]
    start = time.process_time()
    if method in OURS:
        add_influence(task.train, run.trajectory, model=run.model, eval_dataset=task.test, **OURS[method])
    elif method != "nothing":
        next(iter(settings.values()))([run])
    return time.process_time() - start


def child(name: str, action: str, directory: Path) -> None:
    torch.set_num_threads(1)
    task = MODELS[name]()
    steps = {"train": train, "save": save}
    seconds = steps[action](task, directory) if action in steps else score(task, directory, action)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_memory()}))


def measure(name: str, action: str, directory: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, action, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{action} of {name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def of_model(name: str, repeats: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of one model: training first, then each method; medians over the repeats."""
    methods = [*OURS, *others(tuple(other for other in names if other not in SLOW.get(name, ())))]
    with tempfile.TemporaryDirectory() as directory:
        measure(name, "save", Path(directory))
        found: dict[str, list[dict[str, float]]] = {action: [] for action in ("train", "nothing", *methods)}
        for repeat in range(repeats):  # one of each in turn, so that a slow spell of the machine meets all
            for action in found:
                with tempfile.TemporaryDirectory() as scratch:
                    place = Path(scratch) if action == "train" else Path(directory)
                    if action in OURS:
                        shutil.rmtree(place / "trajectory" / "scores", ignore_errors=True)
                    found[action].append(measure(name, action, place))
            print(f"{name}: round {repeat + 1} of {repeats} is done", file=sys.stderr)
    middle = {
        action: {key: statistics.median(m[key] for m in measured) for key in ("seconds", "peak_mb")}
        for action, measured in found.items()
    }
    training, idle = middle["train"]["seconds"], middle["nothing"]["peak_mb"]
    return [
        {
            "model": name,
            "method": "training run, recorded" if action == "train" else action,
            "seconds": figures["seconds"],
            "training_runs": figures["seconds"] / training,
            "peak_mb": figures["peak_mb"],
            "peak_mb_above_idle": figures["peak_mb"] - idle,
        }
        for action, figures in middle.items()
        if action != "nothing"
    ]


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    models, repeats, names = PROFILES[profile]
    rows, summary = [], {}
    for name in models:
        found = of_model(name, repeats, names)
        rows += found
        costs = {row["method"]: row["training_runs"] for row in found}
        summary[f"score_cost_{name}"] = costs["hf_prune"]
        rest = [cost for method, cost in costs.items() if method not in OURS and not method.startswith("training")]
        if rest:
            summary["score_cost_best_other"] = summary[f"score_cost_best_other_{name}"] = min(rest)
    return rows, summary


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main("cost", run)
