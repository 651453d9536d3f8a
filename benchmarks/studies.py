"""What the studies of selection share: tasks with their splits, one recorded and scored run, and fast retraining."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence


@dataclass(frozen=True)
class Arrays:
    """Inputs, float32 of shape `(n, features)`, and classes, int64 of shape `(n,)`."""

    x: np.ndarray
    y: np.ndarray

    def take(self, rows: Any) -> Arrays:
        return Arrays(self.x[rows], self.y[rows])

    def dataset(self) -> Dataset:
        kinds = Features(
            {"x": List(Value("float32"), length=self.x.shape[1]), "labels": ClassLabel(num_classes=10)}
        )  # fmt: skip
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(self.x.ravel()), self.x.shape[1]),
            "labels": pa.array(self.y),
        }
        return Dataset(pa.table(columns).cast(kinds.arrow_schema))


@dataclass(frozen=True)
class Task:
    """
    A classification task.

    Args:
        name (`str`): Of the data set.
        train (`Arrays`): Rows to prune.
        held_out (`Arrays`): Rows that influence is asked on.
        dev (`Arrays`): Rows that choices may be made on.
        test (`Arrays`): Rows that nothing is chosen on.
        net (`Callable`): Makes a fresh network from inputs to logits.
        epochs (`int`), lr (`float`), batch (`int`): How it is trained, with AdamW, 10 % warm-up and linear decay.
        together (`int`): Models that are retrained at once.
    """

    name: str
    train: Arrays
    held_out: Arrays
    dev: Arrays
    test: Arrays
    net: Callable[[], nn.Module]
    epochs: int
    lr: float
    batch: int
    together: int


class Classifier(nn.Module):
    """A network with the loss that the Trainer asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {
            "loss": nn.functional.cross_entropy(logits, labels), "logits": logits
        }  # fmt: skip


def mlp(features: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def cnn() -> nn.Module:
    """Three convolutions with group normalisation, for 16 x 16 x 3 pixels; 24 k parameters."""

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool2d(2)]

    shape = nn.Unflatten(1, (3, 16, 16))
    return nn.Sequential(
        shape, *block(3, 16), *block(16, 32), *block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


def split(pool: Arrays, sizes: Sequence[int], seed: int) -> list[Arrays]:
    order = np.random.default_rng(seed).permutation(len(pool.y))
    return [pool.take(part) for part in np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])]


def digits_task(seed: int = 0) -> Task:
    """scikit-learn's digits: 1,097 rows, 200 held out, 150 of dev, 350 of test; an MLP with 64 hidden units."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    # the test rows are the same whatever the seed; the others are dealt out by it
    rest, test = split(Arrays((x / 16).astype("float32"), y.astype("int64")), [1447, 350], 0)
    train, held_out, dev = split(rest, [1097, 200, 150], seed)
    return Task("digits", train, held_out, dev, test, lambda: mlp(64, 64), 20, 3e-3, 32, 24)


def mnist_task(directory: Path, rows: int = 8_000, seed: int = 0) -> Task:
    """
    MNIST from its uncompressed idx files; an MLP with 32 hidden units.

    The rule behind `difficulty="auto"` was calibrated on other splits of MNIST, the official test rows among them: so
    the test rows are 6,000 of the training file, of which that calibration may have seen some as training rows.
    """

    def read(name: str) -> Arrays:
        x = np.fromfile(directory / f"{name}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)
        y = np.fromfile(directory / f"{name}-labels-idx1-ubyte", np.uint8)[8:]
        return Arrays((x / 255).astype("float32"), y.astype("int64"))

    pool, test = split(read("train"), [50_000, 6_000], 2024)
    train, held_out, dev = split(pool, [rows, 1_000, 3_000], seed)
    return Task("mnist", train, held_out, dev, test, lambda: mlp(784, 32), 10, 1e-3, 32, 8)


def cifar_task(file: Path, rows: int = 5_000, seed: int = 0) -> Task:
    """CIFAR-10 (recompressed as JPEG) averaged to 16 x 16 pixels; a small CNN, far from saturated."""
    from PIL import Image

    table = pq.read_table(file)
    parts = np.array(table["split"].to_pylist())
    labels = table["label"].to_numpy().astype("int64")
    images = table["image"].combine_chunks().field("bytes")

    def read(chosen: np.ndarray) -> Arrays:
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(images[int(i)].as_py()))) for i in chosen])
        small = pixels.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(len(chosen), -1)
        return Arrays(((small - 120) / 64).astype("float32"), labels[chosen])

    pool = np.random.default_rng(seed).permutation(np.flatnonzero(parts == "train"))[: rows + 3_000]
    train, held_out, dev = split(read(pool), [rows, 1_000, 2_000], seed)
    test = read(np.flatnonzero(parts == "test")[:4_000])
    return Task("cifar10", train, held_out, dev, test, cnn, 12, 2e-3, 32, 1)


def scored_run(
    task: Task, *, curvature: str = "auto", directions: int = 64, seed: int = 0, column: str = "influence"
) -> tuple[Dataset, Classifier]:
    """Trains with the real Trainer and its recorder, and adds influence and scores; returns rows and model."""
    from hf_prune.scores import add_scores

    set_seed(seed)
    model = Classifier(task.net())
    rows, held_out = task.train.dataset(), task.held_out.dataset()
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "trajectory"
        arguments = TrainingArguments(
            directory, num_train_epochs=task.epochs, per_device_train_batch_size=task.batch, learning_rate=task.lr,
            warmup_steps=0.1, weight_decay=0.0, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, use_cpu=True, seed=seed,
        )  # fmt: skip
        recorder = TrajectoryCallback(record, row_statistics=True)
        Trainer(model, arguments, train_dataset=rows.with_format("torch"), callbacks=[recorder]).train()
        scored = add_influence(
            rows, record, model=model, eval_dataset=held_out, directions=directions, curvature=curvature,
            column=column,
        )  # fmt: skip
        scored = add_scores(scored, record, model=model)
        return scored, model  # its files are mapped, so they may go


def retrain(
    task: Task, subsets: Sequence[np.ndarray], seeds: Sequence[int], on: str, *, steps: int | None = None
) -> np.ndarray:
    """
    Accuracies of networks trained on some rows each, in plain torch with the optimizer of the recorded run.

    Args:
        task (`Task`): The task.
        subsets (`Sequence[np.ndarray]`): Rows of `task.train` for each network, equally many.
        seeds (`Sequence[int]`): Seed of each network's weights and order of rows.
        on (`str`): `"dev"` or `"test"`.
        steps (`int`, *optional*): Steps to make; by default the task's epochs.

    Returns:
        `np.ndarray`: Accuracies, float64 of shape `(networks,)`.
    """
    x, y, rows = torch.tensor(task.train.x), torch.tensor(task.train.y), getattr(task, on)
    found = []
    for start in range(0, len(subsets), task.together):
        part = slice(start, start + task.together)
        for net in _train(task, x, y, subsets[part], seeds[part], steps):
            with torch.no_grad():
                found.append((net(torch.tensor(rows.x)).argmax(1).numpy() == rows.y).mean())
    return np.array(found)


def train_one(task: Task, rows: np.ndarray, seed: int) -> nn.Module:
    """A network trained on some rows."""
    return _train(task, torch.tensor(task.train.x), torch.tensor(task.train.y), [rows], [seed], None)[0]


def _train(
    task: Task, x: torch.Tensor, y: torch.Tensor, subsets: Sequence[np.ndarray], seeds: Sequence[int],
    steps: int | None,
) -> list[nn.Module]:  # fmt: skip
    """Trains networks at once: their parameters are stacked, and clipped each by its own norm."""
    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        nets.append(task.net())
    single = nets[0]
    stacked, _ = stack_module_state(nets)
    parameters = {name: value.detach().requires_grad_() for name, value in stacked.items()}
    ids = torch.tensor(np.stack(subsets))
    n = ids.shape[1]
    total = steps or task.epochs * -(-n // task.batch)
    warm = max(1, round(0.1 * total))
    optimizer = torch.optim.AdamW(parameters.values(), lr=task.lr, weight_decay=0.0, fused=True)
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]

    def loss(weights: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(single, weights, (inputs,)), labels)

    gradients = vmap(grad(loss)) if len(nets) > 1 else _one(grad(loss))
    done = 0
    while done < total:
        order = torch.stack([ids[i][torch.randperm(n, generator=g)] for i, g in enumerate(generators)])
        for start in range(0, n, task.batch):
            batch = order[:, start : start + task.batch]
            for group in optimizer.param_groups:
                group["lr"] = task.lr * min((done + 1) / warm, (total - done) / max(1, total - warm))
            found = gradients({k: v.detach() for k, v in parameters.items()}, x[batch], y[batch])
            norms = torch.sqrt(sum(g.flatten(1).square().sum(1) for g in found.values()))
            factor = (1.0 / (norms + 1e-6)).clamp(max=1.0)
            for name, value in parameters.items():
                value.grad = found[name] * factor.view(-1, *[1] * (found[name].dim() - 1))
            optimizer.step()
            done += 1
            if done == total:
                break
    for number, net in enumerate(nets):
        net.load_state_dict({name: value[number].detach() for name, value in parameters.items()})
    return nets


def _one(gradient: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., dict[str, torch.Tensor]]:
    """The same for a stack of one network, without vmap, which turns convolutions into slow ones."""

    def stacked(weights: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor):
        found = gradient({k: v[0] for k, v in weights.items()}, inputs[0], labels[0])
        return {k: v[None] for k, v in found.items()}

    return stacked
