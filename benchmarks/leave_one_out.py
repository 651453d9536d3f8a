"""
Single rows against really leaving them out, where inputs are rarely active: pictures of clothes, 1,000 rows, an MLP.

The run goes through the real Trainer and its recorder. The truth is the same training in float64, batch by batch from
the record, with one row's loss left out in the window, for 48 rows; without one it ends at the Trainer's parameters to
1e-6. `shift r`: Pearson correlation over rows of `influence_norm` with the root mean square shift of 200 held-out
rows' logits; `length`: the one's sum over the other's; `loss r`, `loss error`: correlation and relative error of
`influence_eval_loss`. `held` is the sweep with Adam's second moment held, as it is by default from 64 updates on.

    python benchmarks/study_data.py DATA
    python benchmarks/leave_one_out.py --profile full --data DATA --out results/leave_one_out.json
"""

from __future__ import annotations

import argparse
import copy
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import main
from studies import Classifier
from study_data import load
from study_tasks import Arrays
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import Trajectory, TrajectoryCallback, add_influence
from hf_prune.influence import checks

RUNS: dict[str, dict[str, Any]] = {
    "GELU, 16 steps, whole run": {"act": nn.GELU, "epochs": 1, "batch": 63, "window": 1.0, "snapshots": 4},
    "GELU, 192 steps, half": {"act": nn.GELU, "epochs": 6, "batch": 32, "window": 0.5, "snapshots": 1},
    "ReLU, 192 steps, half": {"act": nn.ReLU, "epochs": 6, "batch": 32, "window": 0.5, "snapshots": 1},
}
PROFILES = {"quick": (4, ("GELU, 16 steps, whole run",)), "full": (48, tuple(RUNS))}
ROWS, HELD_OUT, RATE = 1_000, 200, 1e-3


def split(data: Path) -> tuple[Arrays, Arrays]:
    pool = load(data, "fashion")
    order = np.random.default_rng(0).permutation(len(pool.y))
    return pool.take(order[:ROWS]), pool.take(order[ROWS : ROWS + HELD_OUT])


def without(
    trajectory: Trajectory, initial: nn.Module, train: Arrays, held_out: Arrays, left_out: list[int]
) -> torch.Tensor:
    """Held-out logits `(networks, rows, classes)` without each of some rows in the window; -1 leaves none out."""
    x, y = torch.tensor(train.x).double(), torch.tensor(train.y)
    parameters, _ = stack_module_state([initial.double()] * len(left_out))
    parameters = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.0)

    def loss(own: dict[str, torch.Tensor], batch: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(functional_call(initial, own, (x[batch],)), y[batch], reduction="none")
        return (losses * (batch != gone)).mean()

    for step in trajectory.steps():
        gone = torch.tensor(left_out if step.index >= trajectory.window[0] else [-1] * len(left_out))
        gradients = vmap(grad(loss), (0, None, 0))(parameters, torch.tensor(step.ids), gone)
        norms = torch.stack([value.flatten(1).square().sum(1) for value in gradients.values()]).sum(0).sqrt()
        factors = (1.0 / (norms + 1e-6)).clamp(max=1.0)
        for name, value in parameters.items():
            value.grad = gradients[name] * factors.view(-1, *[1] * (value.dim() - 1))
        optimizer.param_groups[0]["lr"] = step.learning_rates[0]
        optimizer.step()
    inputs = torch.tensor(held_out.x).double()
    with torch.no_grad():
        return vmap(lambda own: functional_call(initial, own, (inputs,)))(parameters)


def measure(name: str, rows: int, data: Path) -> list[dict[str, Any]]:
    run, (train, held_out) = RUNS[name], split(data)
    set_seed(0)
    net = nn.Sequential(nn.Linear(784, 32), run["act"](), nn.Linear(32, 10))
    model, initial = Classifier(net), copy.deepcopy(net)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "trajectory"
        arguments = TrainingArguments(
            directory,
            num_train_epochs=run["epochs"],
            per_device_train_batch_size=run["batch"],
            learning_rate=RATE,
            warmup_steps=0.1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        recorder = TrajectoryCallback(record, window=run["window"], snapshots_per_epoch=run["snapshots"])
        Trainer(model, arguments, train_dataset=train.dataset(), callbacks=[recorder]).train()
        chosen = np.random.default_rng(1).permutation(ROWS)[:rows].tolist()
        logits = without(Trajectory.open(record), initial, train, held_out, [-1, *chosen])
        labels = torch.tensor(held_out.y)
        losses = torch.stack([nn.functional.cross_entropy(own, labels) for own in logits])
        shifts = (logits[1:] - logits[0]).square().sum(2).mean(1).sqrt().numpy()
        changes = (losses[1:] - losses[0]).numpy()
        for held in (False, True):
            shutil.rmtree(record / "scores", ignore_errors=True)  # what was computed otherwise
            with patch.object(checks, "FEW_STEPS", 0 if held else 1_000):
                for mode in ("visits", "expected"):
                    scored = add_influence(
                        train.dataset(), record, model=model, eval_dataset=held_out.dataset(), mode=mode
                    )
                    norm = np.array(scored["influence_norm"])[chosen]
                    change = np.array(scored["influence_eval_loss"])[chosen]
                    found.append(
                        {"run": name, "mode": mode, "second moment": "held" if held else "followed"}
                        | {
                            "shift r": float(np.corrcoef(norm, shifts)[0, 1]),
                            "length": float(norm.sum() / shifts.sum()),
                        }
                        | {"loss r": float(np.corrcoef(change, changes)[0, 1])}
                        | {"loss error": float(np.linalg.norm(change - changes) / np.linalg.norm(changes))}
                    )
    return found


def run(profile: str, data: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    rows, names = PROFILES[profile]
    found = [row for name in names for row in measure(name, rows, data)]
    keys = [f"{row['run']}, {row['mode']}, {row['second moment']}" for row in found]
    return found, {key: row["loss r"] for key, row in zip(keys, found, strict=True)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, default=Path("data"), help="what study_data.py made")
    known, sys.argv[1:] = parser.parse_known_args()
    main("leave_one_out", partial(run, data=known.data))
