"""The demo's path: train with the callback, score, prune, retrain, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.utils import tqdm
from transformers import Trainer, set_seed

from hf_prune.demo.task import Task
from hf_prune.influence import add_influence
from hf_prune.publish import files
from hf_prune.record import TrajectoryCallback
from hf_prune.selection import PrunedDataset, prune
from hf_prune.verification import Arm, Verification
from hf_prune.verification.gap import predicted_loss_change, random_rows, same_columns, train_arm
from hf_prune.verification.kept import KeptRetrainings
from hf_prune.verification.runs import RetrainingProtocol

RATES = (0.5, 0.7, 0.9)
MAIN_RATE = 0.5
"""The rate that the report shows in detail, and whose dataset is saved."""
SEED = 0
MARKER = ".hf-prune-demo"
WARM_UP_STEPS = 5
SECONDS = ("train", "record_overhead", "score", "select")
"""Times that are part of the result."""


@dataclass(frozen=True)
class DemoResult:
    """
    What a demo measured.

    Args:
        task (`Task`): What was run.
        scored (`Dataset`): The training rows with their influence.
        pruned (`dict[float, PrunedDataset]`): By rate.
        test (`dict[float, Verification]`): Metric and loss on the test rows, by rate.
        dev (`Verification`): On the dev rows at the main rate, for as many steps as on all rows, which is what the
            certificate's prediction is for.
        provenance (`dict[str, Any]`): Of the saved dataset.
        seconds (`dict[str, float]`): `train` (with the callback), `record_overhead` (of the callback, one pair of
            trainings with the same seed), `score`, `select` (at the main rate) and `total`.
    """

    task: Task
    scored: Dataset
    pruned: dict[float, PrunedDataset]
    test: dict[float, Verification]
    dev: Verification
    provenance: dict[str, Any]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The figures as one JSON-able dictionary; accuracies and gaps are means over seeds."""
        observed = self.dev.loss_change
        full = next(iter(self.test.values())).full
        return {
            "accuracy": {
                "full": full.metric.mean,
                "pruned": {f"{rate:g}": found.pruned.metric.mean for rate, found in self.test.items()},
                "random": {f"{rate:g}": found.random.metric.mean for rate, found in self.test.items() if found.random},
            },
            "predicted_gap": self.dev.predicted_loss_change,
            "observed_gap": None if observed is None else observed.mean,
            "seconds": {name: round(self.seconds[name], 3) for name in SECONDS},
        }


def run_demo(
    task: Task, output_dir: str | Path, *, seeds: int | None = None, rates: Sequence[float] = RATES
) -> DemoResult:
    """
    Runs the whole path and writes what it makes: `trajectory`, `pruned-0.5` and, with [`~hf_prune.demo.show`],
    `report.html`.

    Args:
        task (`Task`): What to run.
        output_dir (`str` or `Path`): A new or empty directory, or that of an earlier demo, which is replaced.
        seeds (`int`, *optional*): Retrainings of each arm, by default the task's.
        rates (`Sequence[float]`, *optional*, defaults to `(0.5, 0.7, 0.9)`): Shares of rows to prune.

    Raises:
        `ValueError`: If the directory holds something else.
    """
    if MAIN_RATE not in rates:
        raise ValueError(f"rates={tuple(rates)} lacks {MAIN_RATE}, at which the gap is predicted: add it.")
    out = _fresh(Path(output_dir))
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    trainer = _train(task, out, seconds)
    scored = _timed(seconds, "score", lambda: _score(task, trainer, out))
    pruned = {}
    for rate in tqdm(rates, desc="Pruning", unit="rate"):
        name = "select" if rate == MAIN_RATE else f"select {rate:g}"
        pruned[rate] = _timed(seconds, name, partial(prune, scored, round(len(scored) * (1 - rate))))
    pruned[MAIN_RATE].save_to_disk(out / f"pruned-{MAIN_RATE:g}")
    test, dev = _retrain(task, out, pruned, seeds or task.seeds)
    provenance = files.write(pruned[MAIN_RATE], out / f"pruned-{MAIN_RATE:g}", observed=test[MAIN_RATE].observed())
    seconds["record_overhead"] = seconds["train"] - test[MAIN_RATE].full.runs[0].seconds
    seconds["total"] = time.perf_counter() - start
    return DemoResult(task, scored, pruned, test, dev, provenance, seconds)


def _fresh(out: Path) -> Path:
    marker = out / MARKER
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ValueError(f"{out} is not empty and holds no earlier demo: pass a new directory.")
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for name in ("trajectory", "trainer", f"pruned-{MAIN_RATE:g}"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "report.html").unlink(missing_ok=True)
    return out


def _train(task: Task, out: Path, seconds: dict[str, float]) -> Trainer:
    """The recorded training, after a few unrecorded steps that warm the libraries up."""
    make = task.factory(out / "trainer")
    warm_up = make(task.train, SEED)
    warm_up.args.max_steps = WARM_UP_STEPS
    warm_up.train()
    set_seed(SEED)
    trainer = make(task.train, SEED)
    trainer.add_callback(TrajectoryCallback(out / "trajectory", **task.recording))
    _timed(seconds, "train", trainer.train)
    return trainer


def _score(task: Task, trainer: Trainer, out: Path) -> Dataset:
    model = trainer.model
    assert model is not None
    return add_influence(task.train, out / "trajectory", model=model, eval_dataset=task.dev, **task.scoring)


def _retrain(
    task: Task, out: Path, pruned: dict[float, PrunedDataset], count: int
) -> tuple[dict[float, Verification], Verification]:
    """
    Verifications on test rows by rate, for equal epochs, and that on dev rows at the main rate, for equal steps. The
    full arm is trained once for all.
    """
    factory, held_out = task.factory(out / "trainer"), {"test": task.test, "dev": task.dev}
    epochs, steps = (
        KeptRetrainings(RetrainingProtocol(factory, held_out, "accuracy", budget, len(task.train)), None)
        for budget in ("epochs", "steps")
    )
    seeds = list(range(SEED, SEED + count))
    rows = {rate: same_columns(dataset, task.train) for rate, dataset in pruned.items()}
    arms = {}
    with tqdm(total=count * (2 + 2 * len(pruned)), desc="Retraining", unit="run") as bar:
        full = train_arm(epochs, "all rows", lambda seed: task.train, seeds, bar=bar)
        for rate, less in rows.items():
            arms[rate] = _pair(epochs, task.train, less, f"{rate:g}", seeds, bar)
        main = train_arm(steps, "equal steps", lambda seed: rows[MAIN_RATE], seeds, full_arm=full["dev"], bar=bar)
    shutil.rmtree(out / "trainer", ignore_errors=True)
    test = {
        rate: Verification("accuracy", True, "epochs", full["test"], less["test"], random["test"])
        for rate, (less, random) in arms.items()
    }
    predicted = predicted_loss_change(pruned[MAIN_RATE])
    return test, Verification("accuracy", True, "steps", full["dev"], main["dev"], None, predicted)


def _pair(
    retrainings: KeptRetrainings, full: Dataset, less: Dataset, rate: str, seeds: list[int], bar: Any
) -> tuple[Mapping[str, Arm], Mapping[str, Arm]]:
    """The arm of the pruned rows and that of as many random ones."""
    return (
        train_arm(retrainings, f"pruned {rate}", lambda seed: less, seeds, bar=bar),
        train_arm(retrainings, f"random {rate}", lambda seed: random_rows(full, len(less), seed), seeds, bar=bar),
    )


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - start
    return result
