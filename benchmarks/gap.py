"""
Predicted against observed change of the held-out loss, over subsets of mixed methods and rates up to one half.

Predicted:
- `first_order`: c, the sum of the dropped rows' `influence_eval_loss`, centred and re-weighted.
- `second_order`: `c + 1/2 h r^2`; r is the certificate's audit residual, an estimate of the root mean square shift of
  a held-out logit vector, and h the mean curvature of the held-out loss in the logits, `mean of (1 - sum p^2) / C`.
- `whole_run`: the certificate of `select`, `c/w + 1/2 h (r/w)^2`; w is the share of the steps that were recorded.
  Scores tell of visits in the window alone; here those before it are taken to count as much.
- `shorter_run`: the same, plus what training for less steps changes, `L (q^-a - 1)`; q is the share of rows that is
  kept, L the recorded run's held-out loss. It is taken to fall as a power a of the sum of the learning rates that were
  spent; a is read off the recorded run between the window's beginning and its end.
Observed: the mean over seeds of the loss of models trained again on the subset, minus that of models trained on all
rows. With equal steps, the kept rows have n/(n-m) times their weight, which is what the certificate predicts; with
equal epochs they have not, and shorter training has an effect of its own. Both are measured.
Data: digits, and movie reviews as mean outputs of a frozen MiniLM; the model is an MLP with one hidden layer. All
formulas were chosen with split 0 of these two in sight. Other splits and MNIST were measured once, afterwards:
    python benchmarks/gap.py --profile full --splits 0 1 2 --mnist DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from datasets import Dataset
from datasets.utils import tqdm
from ensemble import Mlp, mean_losses, train_together
from gap_tasks import Task, task
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import linregress, spearmanr
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import Trajectory, TrajectoryCallback, add_influence, select
from hf_prune.scores import add_scores

METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random", "seed": 1},
    "random 2": {"method": "random", "seed": 2},
    "stratified": {"method": "stratified"},
    "norm": {"method": "norm"},
    "ccs": {"method": "ccs"},
    "moderate": {"method": "moderate"},
    "herding": {"method": "herding"},
    "kcenter": {"method": "kcenter"},
    "influence": {},
    "influence, hard": {"difficulty": 1.0},
    "influence, easy": {"difficulty": 0.0},
}
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"data": ("digits",), "rates": (0.2, 0.5), "seeds": 2, "epochs": 0.4, "directions": 32},
    "full": {
        "data": ("digits", "reviews"),
        "rates": (0.1, 0.2, 0.3, 0.4, 0.5),
        "seeds": 8,
        "epochs": 1.0,
        "directions": 64,
    },
}
BATCH = 32
WINDOW = 0.5
BUDGETS = ("steps", "epochs")
PREDICTIONS = ("first_order", "second_order", "whole_run", "shorter_run")
SHOWN = (("whole_run", "steps"), ("shorter_run", "epochs"))
"""Predictions beside what they are about, for the picture."""


def recorded(job: Task, directions: int, directory: str) -> tuple[Dataset, torch.Tensor, tuple[float, float]]:
    """The scored rows, held-out logits, and held-out loss with its power: of one run of the real Trainer."""
    set_seed(0)
    arguments = TrainingArguments(
        directory,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=BATCH,
        warmup_steps=0.1,
        learning_rate=job.learning_rate,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        seed=0,
        disable_tqdm=True,
        use_cpu=True,
    )
    path = Path(directory) / "trajectory"
    recorder = TrajectoryCallback(path, WINDOW, row_statistics=True)  # the method "ccs" asks for margins
    trainer = Trainer(Mlp(*job.sizes), arguments, train_dataset=job.train, callbacks=[recorder])
    trainer.train()
    scored = add_influence(job.train, path, model=trainer.model, eval_dataset=job.held_out, directions=directions)
    scored = add_scores(scored, path)
    output = trainer.predict(job.held_out)
    return scored, torch.tensor(output.predictions), learning(trainer, path, job.held_out)


def learning(trainer: Trainer, path: Path, held_out: Dataset) -> tuple[float, float]:
    """The held-out loss at the end, and the power of the spent learning rates by which it fell since the window."""
    record = Trajectory.open(path)
    rates = np.array([step.learning_rates[0] for step in record.steps()])
    losses = []
    for step in record.window:
        torch.nn.utils.vector_to_parameters(record.parameters_at(step), trainer.model.parameters())
        losses.append(float(trainer.predict(held_out).metrics["test_loss"]))
    spent = rates[: record.window[0]].sum() / rates.sum()
    return losses[1], math.log(losses[0] / losses[1]) / -math.log(spent)


def measure(job: Task, profile: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One row for each subset, and how the two ways of training agree on all rows."""
    with tempfile.TemporaryDirectory() as directory:
        scored, logits, (loss, power) = recorded(job, profile["directions"], directory)
        curvature = float((1 - logits.softmax(-1).square().sum(-1)).mean()) / logits.shape[-1]
        rows = []
        for rate in profile["rates"]:
            for method, options in METHODS.items():
                selection = select(scored, 1 - rate, **options)
                certificate = selection.certificate
                second = 0.5 * curvature * certificate.audit_residual**2
                whole = certificate.predicted_eval_loss_change
                first = WINDOW * whole - second / WINDOW
                shorter = whole + loss * ((certificate.kept / certificate.n) ** -power - 1)
                found = (first, first + second, whole, shorter)
                row = {"method": method, "rate": rate} | dict(zip(PREDICTIONS, found, strict=True))
                rows.append(row | {"keep": selection.keep_indices})
    full = observe(job, rows, profile["seeds"])
    agreement = {"trainer_loss": loss, "loss_power": power, "ensemble_loss": full.mean()}
    return rows, {key: float(value) for key, value in agreement.items()} | {"ensemble_sd": float(full.std(ddof=1))}


def observe(job: Task, rows: list[dict[str, Any]], count: int) -> np.ndarray:
    """Puts the observed changes into the rows; returns the losses of the models of all rows, `(seeds,)`."""
    (x, y), held_out = job.tensors(job.train), job.tensors(job.held_out)
    seeds = range(count)

    def losses(subsets: list[np.ndarray], steps: int) -> np.ndarray:
        weights = train_together(
            x, y, subsets, seeds, job.sizes, steps=steps, learning_rate=job.learning_rate, batch_size=BATCH
        )
        return mean_losses(weights, *held_out).reshape(len(subsets), count)

    most = -(-len(x) // BATCH) * job.epochs
    full = losses([np.arange(len(x))], most)[0]
    sizes = sorted({len(row["keep"]) for row in rows})
    for size in tqdm(sizes, desc="Training again", unit="size"):
        same = [row for row in rows if len(row["keep"]) == size]
        for budget in BUDGETS:
            steps = most if budget == "steps" else -(-size // BATCH) * job.epochs
            changes = losses([row["keep"] for row in same], steps) - full
            for row, change in zip(same, changes, strict=True):
                row[f"observed_{budget}"] = float(change.mean())
                row[f"error_{budget}"] = float(change.std(ddof=1) / count**0.5)
    for row in rows:
        del row["keep"]
    return full


def run(profile: str, splits: Sequence[int], mnist: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    chosen = PROFILES[profile]
    studies = [(name, split) for split in splits for name in chosen["data"]]
    if mnist is not None:
        studies.append(("mnist", 0))
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for name, split in studies:
        found, agreement = measure(task(name, split, chosen["epochs"], mnist), chosen)
        rows += [{"data": name, "split": split} | row for row in found]
        key = name if split == 0 else f"{name}_split_{split}"
        summary |= {f"{figure}_{key}": value for figure, value in agreement.items()} | summarize(key, found)
        print(key, {figure: round(value, 4) for figure, value in summary.items()}, file=sys.stderr)
    return rows, summary


def summarize(key: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """How each prediction agrees with what was observed; plain keys: the certificate's, with equal steps."""
    summary: dict[str, Any] = {f"subsets_{key}": len(found)}
    for prediction in PREDICTIONS:
        for budget in BUDGETS:
            suffix = key + ("" if prediction == "whole_run" else f"_{prediction}")
            suffix += "" if budget == "steps" else "_epochs"
            summary |= {f"gap_{name}_{suffix}": value for name, value in agree(found, prediction, budget).items()}
    return summary


def agree(rows: list[dict[str, Any]], prediction: str, budget: str) -> dict[str, float]:
    """
    Spearman's rank correlation, its mean within one rate, the R2 of the best line, and its slope (1: the prediction's
    size is right too).
    """
    x, y = (np.array([row[name] for row in rows]) for name in (prediction, f"observed_{budget}"))
    rates = np.array([row["rate"] for row in rows])
    line = linregress(x, y)
    within = [spearmanr(x[rates == rate], y[rates == rate])[0] for rate in np.unique(rates)]
    return {
        "spearman": float(spearmanr(x, y)[0]),
        "spearman_within_rates": float(np.mean(within)),
        "r2": float(line.rvalue**2),
        "slope": float(line.slope),
    }


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Observed against predicted change: a line of panels for each data set, a column for each budget."""
    data = list(dict.fromkeys(row["data"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = dict(zip(methods, colormaps["turbo"](np.linspace(0.05, 0.95, len(methods))), strict=True))
    figure = Figure(figsize=(10, 4 * len(data)), layout="constrained")
    for line, name in zip(figure.subplots(len(data), len(SHOWN), squeeze=False), data, strict=True):
        for ax, (prediction, budget) in zip(line, SHOWN, strict=True):
            found = [row for row in rows if row["data"] == name]
            splits = sorted({row["split"] for row in found})
            for row in found:
                ax.errorbar(
                    row[prediction],
                    row[f"observed_{budget}"],
                    yerr=row[f"error_{budget}"],
                    fmt="os^"[row["split"]],
                    markersize=4,
                    color=colours[row["method"]],
                    label=row["method"],
                )
            low, high = (pick(row[prediction] for row in found) for pick in (min, max))
            ax.plot([low, high], [low, high], ":", color="grey", label="as predicted")
            figures = [agree([row for row in found if row["split"] == split], prediction, budget) for split in splits]
            shown = ", ".join(f"{figure['spearman']:.2f}" for figure in figures)
            ax.set_title(f"{name}, equal {budget}: Spearman {shown}", fontsize=10)
            ax.set_xlabel(f"predicted change of held-out loss ({prediction.replace('_', ' ')})")
            ax.set_ylabel("observed change")
            ax.grid(alpha=0.3)
        _, labels = line[-1].get_legend_handles_labels()
    handles = dict(zip(labels, line[-1].get_legend_handles_labels()[0], strict=True))
    figure.axes[-1].legend(handles.values(), handles.keys(), fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--splits", type=int, nargs="+", choices=range(3), default=[0], help="which rows are drawn")
    parser.add_argument("--mnist", type=Path, help="directory of MNIST's four idx files, not compressed")
    known, sys.argv[1:] = parser.parse_known_args()
    main("gap", lambda profile: run(profile, known.splits, known.mnist))
    parser.add_argument("--out", type=Path)
    written = parser.parse_known_args()[0].out
    if written:
        plot(json.loads(written.read_text())["rows"], written.with_suffix(".svg"))
