"""What the studies of selection share: one recorded and scored run, and fast retraining."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from study_tasks import Task
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.scores import add_scores

TOGETHER = 64
"""MLPs that are trained at once."""
WARM_UP = 0.1


class Classifier(nn.Module):
    """A network with the loss that the Trainer asks for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


def recorded_run(task: Task, directory: Path, seed: int = 0) -> Classifier:
    """Trains with the real Trainer and its recorder, which writes `directory / "trajectory"`."""
    set_seed(seed)
    model = Classifier(task.net())
    arguments = TrainingArguments(
        str(directory),
        num_train_epochs=task.epochs,
        per_device_train_batch_size=task.batch,
        learning_rate=task.lr,
        warmup_steps=WARM_UP,
        weight_decay=0.0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    recorder = TrajectoryCallback(directory / "trajectory", row_statistics=True)
    Trainer(model, arguments, train_dataset=task.train.dataset().with_format("torch"), callbacks=[recorder]).train()
    return model


def scored(task: Task, model: Classifier, directory: Path, *, last_layer: bool = False, **options: Any) -> Dataset:
    """The training rows with the columns of `add_influence` and `add_scores`."""
    record = directory / "trajectory"
    rows = add_influence(task.train.dataset(), record, model=model, eval_dataset=task.held_out.dataset(), **options)
    return add_scores(rows, record, model=model, last_layer=last_layer)


def scored_run(task: Task, *, seed: int = 0, **options: Any) -> tuple[Dataset, Classifier]:
    """A recorded run and its scored rows; `options` are those of `add_influence`."""
    with tempfile.TemporaryDirectory() as directory:
        model = recorded_run(task, Path(directory), seed)
        return scored(task, model, Path(directory), **options), model  # its files are mapped, so they may go


def retrain(
    task: Task,
    subsets: Sequence[np.ndarray],
    seeds: Sequence[int],
    on: str,
    *,
    steps: int | None = None,
    net: Callable[[], nn.Module] | None = None,
) -> np.ndarray:
    """Accuracies, float64 of shape `(networks,)`, of networks that are trained anew; see [`predict`]."""
    return predict(task, subsets, seeds, on, steps=steps, net=net).mean(axis=1)


def predict(
    task: Task,
    subsets: Sequence[np.ndarray],
    seeds: Sequence[int],
    on: str,
    *,
    steps: int | None = None,
    net: Callable[[], nn.Module] | None = None,
) -> np.ndarray:
    """
    Which rows networks get right that are trained on some rows each, with the optimizer of the recorded run.

    Args:
        task (`Task`): The task.
        subsets (`Sequence[np.ndarray]`): Rows of `task.train` for each network, equally many.
        seeds (`Sequence[int]`): Seed of each network's weights and order of rows.
        on (`str`): `"dev"` or `"test"`.
        steps (`int`, *optional*): Steps to make; by default the task's epochs.
        net (`Callable`, *optional*): Makes another network than the task's.

    Returns:
        `np.ndarray`: bool of shape `(networks, rows)`.
    """
    rows, found = getattr(task, on), []
    inputs = torch.tensor(rows.x)
    for start in range(0, len(subsets), TOGETHER):
        part = slice(start, start + TOGETHER)
        for trained in train(task, subsets[part], seeds[part], steps, net):
            with torch.no_grad():
                found.append(trained(inputs).argmax(1).numpy() == rows.y)
    return np.array(found)


def train_one(task: Task, rows: np.ndarray, seed: int) -> nn.Module:
    """A network trained on some rows."""
    return train(task, [rows], [seed])[0]


def train(
    task: Task,
    subsets: Sequence[np.ndarray],
    seeds: Sequence[int],
    steps: int | None = None,
    net: Callable[[], nn.Module] | None = None,
) -> list[nn.Module]:
    """Trains networks as the Trainer does: AdamW, warm-up, linear decay, clipping at 1, shuffled epochs."""
    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        nets.append((net or task.net)())
    n = len(subsets[0])
    total = steps or task.epochs * -(-n // task.batch)
    batches = _batches(subsets, seeds, task.batch, total)
    x, y = torch.tensor(task.train.x), torch.tensor(task.train.y)
    if all(isinstance(layer, nn.Linear | nn.ReLU) for layer in nets[0]):
        _train_mlps(nets, x, y, batches, task.lr)
    else:
        for number, single in enumerate(nets):
            _train_net(single, x, y, [batch[number] for batch in batches], task.lr)
    return nets


def _batches(subsets: Sequence[np.ndarray], seeds: Sequence[int], size: int, steps: int) -> list[torch.Tensor]:
    """Rows of each step, `(networks, batch)`; the last batch of an epoch has what is left."""
    ids = torch.tensor(np.stack(subsets))
    generators = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    found: list[torch.Tensor] = []
    while len(found) < steps:
        orders = torch.stack([torch.randperm(ids.shape[1], generator=generator) for generator in generators])
        found += ids.gather(1, orders).split(size, dim=1)
    return found[:steps]


def _rate(lr: float, step: int, steps: int) -> float:
    warm = max(1, round(WARM_UP * steps))
    return lr * min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _train_net(net: nn.Module, x: torch.Tensor, y: torch.Tensor, batches: list[torch.Tensor], lr: float) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.to(device, memory_format=torch.channels_last)  # convolutions on a CPU take a quarter less
    x, y = x.to(device), y.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0, fused=True)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = _rate(lr, step, len(batches))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    net.to("cpu")


def _train_mlps(
    nets: list[nn.Module], x: torch.Tensor, y: torch.Tensor, batches: list[torch.Tensor], lr: float
) -> None:
    """All at once: weights as batched matrices in one flat tensor, gradients by hand, clipped each by its own norm."""
    flat = torch.stack([nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets])
    flat.grad = torch.zeros_like(flat)
    weights, gradients = _views(nets[0], flat), _views(nets[0], flat.grad)
    optimizer = torch.optim.AdamW([flat], lr=lr, weight_decay=0.0, fused=True)
    for step, batch in enumerate(batches):
        inputs = [x[batch]]
        for weight, bias in weights:
            out = torch.baddbmm(bias[:, None], inputs[-1], weight.mT)
            inputs.append(out.relu_() if len(inputs) < len(weights) else out)
        error = inputs.pop().softmax(2)
        error.scatter_add_(2, y[batch][..., None], torch.full((*batch.shape, 1), -1.0))
        error /= batch.shape[1]
        for (weight, _), (to_weight, to_bias), entering in zip(
            weights[::-1], gradients[::-1], inputs[::-1], strict=True
        ):
            to_weight.copy_(torch.bmm(error.mT, entering))
            to_bias.copy_(error.sum(1))
            if entering is not inputs[0]:
                error = torch.bmm(error, weight) * (entering > 0)
        flat.grad *= (1.0 / (flat.grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        optimizer.param_groups[0]["lr"] = _rate(lr, step, len(batches))
        optimizer.step()
    for net, values in zip(nets, flat, strict=True):
        nn.utils.vector_to_parameters(values, net.parameters())


def _views(net: nn.Module, flat: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's weights `(networks, out, in)` and biases `(networks, out)` in the flat parameters."""
    pieces = flat.split([value.numel() for value in net.parameters()], dim=1)
    shaped = [piece.unflatten(1, value.shape) for piece, value in zip(pieces, net.parameters(), strict=True)]
    return list(zip(shaped[::2], shaped[1::2], strict=True))
