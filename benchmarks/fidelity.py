"""
Predicted against true shifts when rows are left out, through the real Trainer, ours beside other libraries'.

Three parts. The first trains digits again and again through the Trainer, with a row's loss term zeroed from the first
step of the window on (order of batches and denominators stay), and compares the shifts of parameters and outputs with
the columns of `add_influence(mode="visits")`. The second asks the same of single test rows' margins, for rows and for
random groups, and LDS, the linear datamodeling score, of models trained from scratch on random halves; the libraries
of `requirements.txt` answer the same questions about the same runs (see `peers/`). The third shows what more snapshots
do for a run in which small changes grow. Dropout is 0.

Declared before measuring: for LDS our figure is what `add_influence` does without options (mode `expected`, curvature
`auto`, window and snapshots of `TrajectoryCallback` without options), for leaving out rows of a run `mode="visits"`.
Methods with a free constant (a ridge, a damping) are shown at the one of a few settings that does best on the truth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import digits, main
from datasets import Dataset
from peers.study import IN_UNITS, NAMES, VARIANT, Sizes, key_of, snapshots, study
from peers.tasks import CIFAR, mlp, vit, vit_from_scratch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.influence.queries import output_signs, parameter_queries

DIRECTIONS = 16
RUNS: dict[str, dict[str, Any]] = {
    "sgd": {"optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.03, "max_grad_norm": 0.0},
    "adamw": {"learning_rate": 2e-3, "warmup_steps": 0.1},
}
KINDS = {"sgd": ("exact", "none"), "momentum": ("exact", "none"), "adamw": ("exact", "gauss-newton", "fisher", "none")}
PROFILES = {"quick": {"rows": 640, "epochs": 5, "left_out": 10}, "full": {"rows": 1097, "epochs": 10, "left_out": 48}}
# Conjugate gradients over all images take minutes even for 16 test rows.
FAST = tuple(name for name in NAMES if not name.startswith("influence function"))


class Classifier(nn.Module):
    """An MLP whose loss can leave one row out, denominators kept."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.left_out = -1

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, row: torch.Tensor | None = None):
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        present = torch.ones_like(losses) if row is None else (row != self.left_out).to(losses)
        return {"loss": (losses * present).mean(), "logits": logits}


class LeaveOut(TrainerCallback):
    """Zeroes a row's loss from `first` on."""

    def __init__(self, model: Classifier, row: int, first: int):
        self.model, self.row, self.first = model, row, first

    def on_step_begin(self, args, state, control, **kwargs):
        self.model.left_out = self.row if state.global_step >= self.first else -1


def train(train_rows: Dataset, settings: dict[str, Any], epochs: int, callbacks: list, directory: str) -> Classifier:
    set_seed(0)
    model = Classifier()
    arguments = TrainingArguments(
        directory,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **settings,
    )
    for callback in callbacks:
        if isinstance(callback, LeaveOut):
            callback.model = model
    Trainer(model, arguments, train_dataset=train_rows, callbacks=callbacks).train()
    return model


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def compare(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    error = np.linalg.norm(predicted - truth) / np.linalg.norm(truth)
    return {"pearson": float(np.corrcoef(predicted.ravel(), truth.ravel())[0, 1]), "relative_error": float(error)}


def measure(name: str, window: float, profile: dict[str, int]) -> list[dict[str, Any]]:
    train_rows, held_out, _ = digits()
    train_rows = train_rows.select(range(profile["rows"]))
    probe = torch.tensor(np.array(held_out["x"], dtype="float32"))
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "trajectory"
        recorder = TrajectoryCallback(record, window=window)
        model = train(train_rows, RUNS[name], profile["epochs"], [recorder], directory)
        steps = -(-profile["rows"] // 32) * profile["epochs"]
        first = int((1 - window) * steps)
        chosen = np.random.default_rng(1).permutation(profile["rows"])[: profile["left_out"]]
        theta, logits = flat(model), model.net(probe).detach()
        shifts = {"parameters": [], "outputs": []}
        for row in chosen:
            other = train(train_rows, RUNS[name], profile["epochs"], [LeaveOut(None, int(row), first)], directory)
            shifts["parameters"].append(flat(other) - theta)
            shifts["outputs"].append((other.net(probe).detach() - logits).flatten())
        questions = parameter_queries(theta, DIRECTIONS, seed=0)
        signs = output_signs(range(len(probe)), DIRECTIONS, tuple(logits.shape[1:]), seed=0)
        asked = {
            "parameters": questions,
            "outputs": signs.float().flatten(1) / (DIRECTIONS * len(probe)) ** 0.5,
        }
        rows = []
        for space in ("parameters", "outputs"):
            truth = (torch.stack(shifts[space]) @ asked[space].T).numpy()
            for curvature in KINDS[name]:
                scored = add_influence(
                    train_rows,
                    record,
                    model=model,
                    eval_dataset=held_out,
                    directions=DIRECTIONS,
                    space=space,
                    mode="visits",
                    curvature=curvature,
                )
                predicted = np.array(scored["influence"])[chosen]
                rows.append(
                    {"run": name, "window": window, "space": space, "curvature": curvature, "rows": len(chosen)}
                    | compare(predicted, truth)
                )
        return rows


def tasks(profile: str, cifar: Path) -> list[tuple[Any, Sizes]]:
    """What the libraries are compared on. MiniLM has a study of its own, `minilm.py`."""
    if profile == "quick":
        names = (*NAMES[:2], NAMES[3], *IN_UNITS)
        return [(mlp(320, 16, "adamw"), Sizes(left_out=12, groups=4, halves=12, retrainings=2, runs=1, names=names))]
    small = Sizes(left_out=40, groups=12, halves=40, retrainings=3, runs=2)
    of_sgd = replace(small, names=tuple(name for name in NAMES if name not in IN_UNITS))
    found: list[tuple[Any, Sizes]] = [(mlp(1097, 40, "adamw"), small), (mlp(1097, 40, "sgd"), of_sgd)]
    if cifar.exists():
        sizes = Sizes(left_out=24, groups=8, halves=32, retrainings=2, runs=1, names=FAST)
        found.append((vit(1000, 16, cifar), sizes))
    else:
        print(f"The ViT is left out, for there is no {cifar}: name CIFAR-10 with --cifar.")
    return found


def of_libraries(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Figures of the summary: ours, and the best of the other libraries'."""
    found: dict[str, float] = {}
    for run in dict.fromkeys(row["run"] for row in rows):
        name = run.replace("/adamw", "").replace("/", "_")
        for question, figure, key in (("leave-one-out", "margin_r", "loo"), ("LDS", "lds_1_run", "lds")):
            asked = {
                row["method"]: row[figure] for row in rows if row["run"] == run and row.get("question") == question
            }
            default = "hf_prune (visits)" if key == "loo" else "hf_prune (expected)"
            if default in asked:
                found[f"{key}_{name}"] = asked[default]
            if "hf_prune, exact" in asked:
                found[f"{key}_{name}_exact"] = asked["hf_prune, exact"]
            rest = [value for method, value in asked.items() if not method.startswith(("hf_prune", VARIANT))]
            if rest:
                # The plain key is that of the last task, the largest model.
                found[f"{key}_best_other"] = found[f"{key}_{name}_best_other"] = max(rest)
    return found


def measured_before(file: Path, ours: bool) -> list[dict[str, Any]]:
    """
    The rows of an earlier result that are kept: all, or the other libraries' alone.

    Without ours, the error of the lead over them is that of other figures.
    """
    rows = json.loads(file.read_text())["rows"]
    if ours:
        return rows
    return [row | ({"lead_se": None} if "lead_se" in row else {}) for row in rows if _of_others(row)]


def _of_others(row: dict[str, Any]) -> bool:
    return not row.get("method", "hf_prune").startswith("hf_prune")


def compared(profile: str, cifar: Path, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tables of the second part: what is known, and what that lacks."""
    keys = frozenset(key_of(row) for row in known if "method" in row)
    return known + [row for task, sizes in tasks(profile, cifar) for row in study(task, replace(sizes, known=keys))]


def run(
    profile: str, cifar: Path = CIFAR, others_from: Path | None = None, add_to: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    if add_to is not None:
        rows = compared(profile, cifar, measured_before(add_to, ours=True))
        return rows, json.loads(add_to.read_text())["summary"] | of_libraries(rows)
    rows = [row for name in RUNS for row in measure(name, 0.5, PROFILES[profile])]
    figures = {(r["run"], r["curvature"]): r["pearson"] for r in rows if r["space"] == "parameters"}
    summary = {
        "sgd_exact": figures["sgd", "exact"],
        "sgd_none": figures["sgd", "none"],
        "momentum_exact": figures["momentum", "exact"],
        "momentum_none": figures["momentum", "none"],
        "adamw_exact": figures["adamw", "exact"],
        "adamw_fisher": figures["adamw", "fisher"],
        "adamw_none": figures["adamw", "none"],
    }
    libraries = compared(profile, cifar, [] if others_from is None else measured_before(others_from, ours=False))
    summary |= of_libraries(libraries)
    limits = snapshots(vit_from_scratch(1000, 8, cifar), left_out=12) if profile == "full" and cifar.exists() else []
    return rows + libraries + limits, summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cifar", type=Path, default=CIFAR, help="CIFAR-10 as Parquet: image.bytes, label, split")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--others-from", type=Path, help="an earlier result, to take the other libraries' rows from")
    earlier.add_argument("--add-to", type=Path, help="an earlier result, which is kept; what it lacks is measured")
    own, sys.argv[1:] = parser.parse_known_args()
    main("fidelity", partial(run, **vars(own)))
