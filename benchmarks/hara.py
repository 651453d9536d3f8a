"""
The published setting of SGD-influence (Hara, Nitanda, Maehara, NeurIPS 2019, arXiv 1906.08473, section 7.1).

200 training and up to 200 held-out rows of two classes, plain SGD, logistic regression or a network of 8 + 8 hidden
units, sizes and rates of the authors' published scripts. Every row is left out once; its true effect on the held-out
loss is compared with the estimated one by Kendall's tau, and the 10 highest and 10 lowest rows by the Jaccard index.

Beside `add_influence`, which interpolates between one snapshot an epoch by default, runs the authors' algorithm 2,
written here from the paper, which keeps the parameters of every step. Data: MNIST, 1 against 7 as in the paper, where
`--mnist` names a folder with its idx files; and 1 against 7 of scikit-learn's digits. Adult and 20 Newsgroups are not
measured. One thing differs from the scripts: a row that is left out keeps its share of the L2 penalty in the loss.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from datasets import Dataset, Features, List, Value
from scipy.stats import kendalltau
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.trajectory.trajectory import Trajectory

ROWS = 200
# Those of the scripts for MNIST; the rate of the logistic regression falls with the root of the step.
RECIPES: dict[str, dict[str, Any]] = {
    "logistic regression": {"rate": 0.1, "falls": True, "epochs": 5, "batch": 5},
    "network": {"rate": 0.1, "falls": False, "epochs": 10, "batch": 20},
}
SEEDS = {"quick": 2, "full": 10}
ENDS = 10
SUMMARY = {"hf_prune": "", "hf_prune, every step": "_every_step", "algorithm 2 of the paper": "_theirs"}


class Binary(nn.Module):
    """A model with one logit and binary cross-entropy."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


def make_model(kind: str, width: int) -> Binary:
    if kind == "logistic regression":
        return Binary(nn.Linear(width, 1))
    return Binary(nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)))


def mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((folder / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images.reshape(len(labels), -1) / 255.0, labels


def split(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[Dataset, Dataset]:
    """Random rows of the classes 1 and 7, standardised by the training rows."""
    chosen = np.flatnonzero((y == 1) | (y == 7))
    order = np.random.default_rng(seed).permutation(chosen)[: 2 * ROWS]
    scaler = StandardScaler().fit(x[order[:ROWS]])
    parts = []
    for rows in (order[:ROWS], order[ROWS:]):
        kinds = Features({"x": List(Value("float32"), length=x.shape[1]), "labels": List(Value("float32"), length=1)})
        columns = {
            "x": scaler.transform(x[rows]).astype("float32"),
            "labels": (y[rows] == 7)[:, None].astype("float32"),
        }
        parts.append(Dataset.from_dict(columns, features=kinds))
    return parts[0], parts[1]


def penalty(kind: str, train: Dataset) -> float:
    """The scripts' L2 penalty: chosen by cross-validation, or fixed."""
    if kind == "network":
        return 1e-3
    rows = train.with_format("numpy")[:]
    search = {"cv": 5, "scoring": "accuracy", "l1_ratios": (0,), "use_legacy_attributes": False}
    found = LogisticRegressionCV(fit_intercept=False, **search)
    return 1 / (float(found.fit(rows["x"], rows["labels"].ravel()).C_) * len(train))


class Tensors:
    """Rows as tensors, and the losses of many models on them."""

    def __init__(self, model: Binary, train: Dataset, held_out: Dataset):
        self.model = model
        self.names = {name: p.shape for name, p in model.named_parameters()}
        self.x, self.y = (train.with_format("torch")[:][name] for name in ("x", "labels"))
        self.held = tuple(held_out.with_format("torch")[:][name] for name in ("x", "labels"))

    def losses(self, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        parts = theta.split([shape.numel() for shape in self.names.values()])
        values = {name: part.view(shape) for (name, shape), part in zip(self.names.items(), parts, strict=True)}
        logits = functional_call(self.model, values, (x,))["logits"]
        return nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")[:, 0]

    def held_out_loss(self, theta: torch.Tensor) -> torch.Tensor:
        return self.losses(theta, *self.held).mean()


def true_influence(data: Tensors, begin: torch.Tensor, record: Trajectory, decay: float) -> tuple[np.ndarray, Any]:
    """The held-out loss without each row less that with all; and the parameters of every step of the full run."""
    n = len(data.x)
    kept = torch.cat([torch.ones(1, n), 1 - torch.eye(n)])
    thetas, path = begin.expand(n + 1, -1).clone(), []

    def objective(theta: torch.Tensor, rows: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return (data.losses(theta, data.x[rows], data.y[rows]) * present).mean()

    for step in record.steps():
        path.append(thetas[0].clone())
        rows = torch.from_numpy(step.ids)
        gradients = vmap(grad(objective), (0, None, 0))(thetas, rows, kept[:, rows])
        thetas = thetas - step.learning_rates[0] * (gradients + decay * thetas)
    losses = vmap(data.held_out_loss)(thetas).double().numpy()
    return losses[1:] - losses[0], [*path, thetas[0]]


def algorithm_2(data: Tensors, path: list[torch.Tensor], record: Trajectory, decay: float) -> np.ndarray:
    """Their estimate: back over every step with its own parameters and the Hessian of its batch."""
    u = grad(data.held_out_loss)(path[-1])
    found = np.zeros(len(data.x))
    for step in reversed(record.steps()):
        theta, rate = path[step.index], step.learning_rates[0]
        rows = torch.from_numpy(step.ids)
        loss = partial(data.losses, x=data.x[rows], y=data.y[rows])
        slopes = torch.func.jvp(loss, (theta,), (u,))[1]
        np.add.at(found, step.ids, (rate * slopes / len(rows)).double().numpy())
        curved = torch.func.jvp(grad(lambda theta, loss=loss: loss(theta).mean()), (theta,), (u,))[1]
        u = u - rate * (curved + decay * u)
    return found


def recorded(kind: str, train: Dataset, decay: float, seed: int, directory: Path, snapshots: float) -> tuple:
    """Trains through the Trainer with the whole run as the window; the model, its first parameters, the record."""
    recipe = RECIPES[kind]
    set_seed(seed)
    model = make_model(kind, len(train[0]["x"]))
    begin = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe["rate"], weight_decay=decay)
    falls = recipe["falls"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (t + 1) ** -0.5 if falls else 1.0)
    arguments = TrainingArguments(
        str(directory / "out"),
        num_train_epochs=recipe["epochs"],
        per_device_train_batch_size=recipe["batch"],
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    recorder = TrajectoryCallback(directory / "trajectory", window=1.0, snapshots_per_epoch=snapshots)
    trainer = Trainer(model, arguments, train_dataset=train, callbacks=[recorder], optimizers=(optimizer, schedule))
    trainer.train()
    return model, begin, Trajectory.open(directory / "trajectory")


def agreement(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Kendall's tau, and the Jaccard index of the rows at both ends."""
    ends = [set(np.r_[np.argsort(v)[:ENDS], np.argsort(v)[-ENDS:]].tolist()) for v in (truth, found)]
    return float(kendalltau(truth, found)[0]), len(ends[0] & ends[1]) / len(ends[0] | ends[1])


def one_seed(kind: str, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """The agreement of each estimate with the truth."""
    train, held_out = split(x, y, seed)
    decay = penalty(kind, train)
    steps_per_epoch = len(DataLoader(range(len(train)), batch_size=RECIPES[kind]["batch"]))
    found: dict[str, np.ndarray] = {}
    for name, snapshots in (("hf_prune", 1), ("hf_prune, 5 snapshots", 5), ("hf_prune, every step", steps_per_epoch)):
        with tempfile.TemporaryDirectory() as directory:
            model, begin, record = recorded(kind, train, decay, seed, Path(directory), snapshots)
            scored = add_influence(train, record, model=model, eval_dataset=held_out, directions=4, mode="visits")
            found[name] = np.array(scored["influence_eval_loss"], dtype="float64")
    data = Tensors(model, train, held_out)
    truth, path = true_influence(data, begin, record, decay)
    trained = nn.utils.parameters_to_vector(model.parameters()).detach()
    if float((trained - path[-1]).norm() / trained.norm()) > 1e-4:
        raise RuntimeError("The run repeated for the truth is not the recorded one.")
    found["algorithm 2 of the paper"] = algorithm_2(data, path, record, decay)
    return {name: agreement(truth, values) for name, values in found.items()}


def run(profile: str, folder: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    digits = load_digits(return_X_y=True)
    sets = {"digits 1 v 7": (digits[0] / 16, digits[1])}
    if folder is not None:
        sets["MNIST 1 v 7"] = mnist(folder)
    rows, summary = [], {}
    for data, (x, y) in sets.items():
        for kind in RECIPES:
            results = [one_seed(kind, x, y, seed) for seed in range(SEEDS[profile])]
            for name in results[0]:
                taus, jaccards = (np.array([r[name][i] for r in results]) for i in (0, 1))
                rows.append(
                    {
                        "data": data,
                        "model": kind,
                        "method": name,
                        "seeds": len(results),
                        "kendall_tau": float(taus.mean()),
                        "tau_sd": float(taus.std()),
                        "jaccard": float(jaccards.mean()),
                        "jaccard_sd": float(jaccards.std()),
                    }
                )
                short = f"{data.split()[0].lower()}_{'network' if kind == 'network' else 'logistic'}"
                if name in SUMMARY:
                    summary[f"tau_{short}{SUMMARY[name]}"] = float(taus.mean())
    return rows, summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--mnist", type=Path, help="a folder with MNIST's idx files")
    own, sys.argv[1:] = parser.parse_known_args()
    main("hara", partial(run, folder=own.mnist))
