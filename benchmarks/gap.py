"""
Predicted against observed change of the held-out loss, over subsets of mixed methods and rates up to one half.

Predicted, three ways:
- `first_order`: c, the sum of the dropped rows' `influence_eval_loss`, centred and re-weighted.
- `second_order`: `c + 1/2 h r^2`; r is the certificate's audit residual, an estimate of the root mean square shift of
  a held-out logit vector, and h the mean curvature of the held-out loss in the logits, `mean of (1 - sum p^2) / C`.
- `whole_run`: the certificate of `select`, `c/w + 1/2 h (r/w)^2`; w is the share of the steps that were recorded.
  Scores tell of visits in the window alone; here those before it are taken to count as much.
Observed: the mean over seeds of the loss of models trained again on the subset, minus that of models trained on all
rows. With equal steps, the kept rows have n/(n-m) times their weight, which is what the certificate predicts; with
equal epochs they have not, and shorter training has an effect of its own. Both are measured.
Data: digits, and movie reviews as mean outputs of a frozen MiniLM; the model is an MLP with one hidden layer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import digits, main, minilm, movie_reviews
from datasets import Dataset
from datasets.utils import tqdm
from ensemble import Mlp, mean_losses, train_together
from matplotlib.figure import Figure
from scipy.stats import linregress, spearmanr
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence, select
from hf_prune.scores import add_scores

METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random", "seed": 1}, "random 2": {"method": "random", "seed": 2},
    "stratified": {"method": "stratified"}, "norm": {"method": "norm"}, "ccs": {"method": "ccs"},
    "moderate": {"method": "moderate"}, "herding": {"method": "herding"}, "kcenter": {"method": "kcenter"},
    "influence": {}, "influence, hard": {"difficulty": 1.0}, "influence, easy": {"difficulty": 0.0},
}  # fmt: skip
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"data": ("digits",), "rates": (0.2, 0.5), "seeds": 2, "epochs": 0.4, "directions": 32},
    "full": {"data": ("digits", "reviews"), "rates": (0.1, 0.2, 0.3, 0.4, 0.5), "seeds": 8, "epochs": 1.0,
             "directions": 64},
}  # fmt: skip
BATCH = 32
WINDOW = 0.5
BUDGETS = ("steps", "epochs")
PREDICTIONS = ("first_order", "second_order", "whole_run")


@dataclass(frozen=True)
class Task:
    """Rows for training and held-out ones, the sizes of the MLP, and how long and fast it is trained."""

    train: Dataset
    held_out: Dataset
    sizes: tuple[int, int, int]
    epochs: int
    learning_rate: float

    def tensors(self, rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(np.array(rows["x"], dtype="float32")), torch.tensor(rows["labels"])


def task(name: str, share: float) -> Task:
    """The data sets; `share` is that of the epochs of a full run."""
    if name == "digits":
        train, held_out, _ = (part.remove_columns("row") for part in digits())
        return Task(train, held_out, (64, 32, 10), round(30 * share), 2e-3)
    rows = movie_reviews(2600)
    x, y = features(rows["text"]), np.array(rows["labels"])
    mean, scale = x[:2000].mean(0), x[:2000].std(0) + 1e-6
    parts = [Dataset.from_dict({"x": (x[i] - mean) / scale, "labels": y[i]}) for i in (slice(2000), slice(2000, 2600))]
    return Task(parts[0], parts[1], (x.shape[1], 16, 2), round(8 * share), 1e-3)


def features(texts: list[str]) -> np.ndarray:
    """Mean last hidden states of MiniLM, `(n, 384)`."""
    model, tokenizer = minilm()
    encoder = model.base_model.eval()
    found = np.zeros((len(texts), model.config.hidden_size), dtype="float32")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in tqdm(range(0, len(texts), 32), desc="Reading reviews"):
        part = order[start : start + 32]
        batch = tokenizer(
            [texts[i] for i in part], truncation=True, max_length=64, padding=True, return_tensors="pt"
        )  # fmt: skip
        with torch.no_grad():
            hidden, mask = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
        found[part] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return found


def recorded(job: Task, directions: int, directory: str) -> tuple[Dataset, torch.Tensor, float]:
    """The scored rows, the recorded model's held-out logits and its held-out loss: one run of the real Trainer."""
    set_seed(0)
    arguments = TrainingArguments(
        directory, num_train_epochs=job.epochs, per_device_train_batch_size=BATCH, warmup_steps=0.1,
        learning_rate=job.learning_rate, report_to=[], save_strategy="no", logging_strategy="no", seed=0,
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    record = Path(directory) / "trajectory"
    recorder = TrajectoryCallback(record, WINDOW, row_statistics=True)  # the method "ccs" asks for margins
    trainer = Trainer(Mlp(*job.sizes), arguments, train_dataset=job.train, callbacks=[recorder])
    trainer.train()
    scored = add_influence(job.train, record, model=trainer.model, eval_dataset=job.held_out, directions=directions)
    scored = add_scores(scored, record)
    output = trainer.predict(job.held_out)
    return scored, torch.tensor(output.predictions), float(output.metrics["test_loss"])


def measure(name: str, profile: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One row for each subset of a data set, and how the two ways of training agree on all rows."""
    job = task(name, profile["epochs"])
    with tempfile.TemporaryDirectory() as directory:
        scored, logits, trainer_loss = recorded(job, profile["directions"], directory)
        curvature = float((1 - logits.softmax(-1).square().sum(-1)).mean()) / logits.shape[-1]
        rows = []
        for rate in profile["rates"]:
            for method, options in METHODS.items():
                selection = select(scored, 1 - rate, **options)
                certificate = selection.certificate
                second = 0.5 * curvature * certificate.audit_residual**2
                whole = certificate.predicted_eval_loss_change
                first = WINDOW * whole - second / WINDOW
                found = {"first_order": first, "second_order": first + second, "whole_run": whole}
                rows.append({"data": name, "method": method, "rate": rate, **found, "keep": selection.keep_indices})
    full = observe(job, rows, profile["seeds"])
    agreement = {"trainer_loss": trainer_loss, "ensemble_loss": full.mean(), "ensemble_sd": full.std(ddof=1)}
    return rows, {key: float(value) for key, value in agreement.items()}


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


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for name in PROFILES[profile]["data"]:
        found, agreement = measure(name, PROFILES[profile])
        rows += found
        summary |= {f"{key}_{name}": value for key, value in agreement.items()} | summarize(name, found)
    return rows, summary


def summarize(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """How each prediction agrees with what was observed; plain keys: the certificate's, with equal steps."""
    summary: dict[str, Any] = {f"subsets_{name}": len(found)}
    for prediction in PREDICTIONS:
        for budget in BUDGETS:
            suffix = name + ("" if prediction == "whole_run" else f"_{prediction}")
            suffix += "" if budget == "steps" else "_epochs"
            summary |= {f"gap_{key}_{suffix}": value for key, value in agree(found, prediction, budget).items()}
    return summary


def agree(rows: list[dict[str, Any]], prediction: str, budget: str) -> dict[str, float]:
    """Spearman's rank correlation, the R2 of the best line, and its slope (1: the prediction's size is right too)."""
    x, y = [row[prediction] for row in rows], [row[f"observed_{budget}"] for row in rows]
    line = linregress(x, y)
    return {"spearman": float(spearmanr(x, y)[0]), "r2": float(line.rvalue**2), "slope": float(line.slope)}


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Observed against predicted change, equal steps: one panel for each data set and prediction."""
    data = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(12, 3.8 * len(data)), layout="constrained")
    axes = figure.subplots(len(data), len(PREDICTIONS), squeeze=False)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = np.array([[*np.array(c[:3])] for c in _palette(len(methods))])
    for line, name in zip(axes, data, strict=True):
        for ax, prediction in zip(line, PREDICTIONS, strict=True):
            found = [row for row in rows if row["data"] == name]
            for method, colour in zip(methods, colours, strict=True):
                own = [row for row in found if row["method"] == method]
                ax.errorbar(
                    [row[prediction] for row in own], [row["observed_steps"] for row in own],
                    yerr=[row["error_steps"] for row in own], fmt="o", markersize=4, color=colour, label=method,
                )  # fmt: skip
            shown = agree(found, prediction, "steps")
            ax.set_title(f"{name}, {prediction.replace('_', ' ')}: Spearman {shown['spearman']:.2f}", fontsize=10)
            ax.set_xlabel("predicted change of held-out loss")
            ax.set_ylabel("observed change")
            ax.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


def _palette(count: int) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["turbo"](np.linspace(0.05, 0.95, count))


if __name__ == "__main__":
    main("gap", run)
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    written = parser.parse_known_args(sys.argv[1:])[0].out
    if written:
        plot(json.loads(written.read_text())["rows"], written.with_suffix(".svg"))
