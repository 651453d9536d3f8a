"""Training steps again, for many models at once: with rows left out, or on other rows, as the Trainer makes them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets.utils import tqdm
from torch import nn
from torch.func import functional_call, grad, vmap
from transformers import get_scheduler, set_seed

from peers.recorded import Run, arguments
from peers.tasks import Logits, Task, margins

# Parameters of models that are trained side by side; small models gain by it, large ones do not.
AT_ONCE = 1 << 19


@dataclass(frozen=True)
class Batch:
    """One step of m models: rows `(m, B)` or, shared by all, `(B,)`; which of them count `(m, B)`; learning rate."""

    rows: torch.Tensor
    present: torch.Tensor
    rate: float


class Network:
    """The task's model as a function of its flat parameters."""

    def __init__(self, model: Logits):
        self.model = model
        named = dict(model.named_parameters())
        self.names, self.shapes = list(named), [p.shape for p in named.values()]
        self.sizes = [p.numel() for p in named.values()]
        self.buffers = dict(model.named_buffers())

    def logits(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        parts = theta.split(self.sizes)
        values = {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        return functional_call(self.model, (values, self.buffers), (x,))

    def loss(self, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """The mean loss of a batch in which rows may be absent; the denominator counts them still."""
        losses = nn.functional.cross_entropy(self.logits(theta, x), y, reduction="none")
        return (losses * present).sum() / len(y)

    @torch.no_grad()
    def margins(self, thetas: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The margins `(m, n)` of m models."""
        return torch.stack([margins(self.logits(theta, x), y) for theta in thetas])


def train(
    task: Task,
    network: Network,
    thetas: torch.Tensor,
    batches: list[Batch],
    *,
    moments: dict[str, torch.Tensor] | None = None,
    updates: int = 0,
) -> torch.Tensor:
    """
    Trains m models side by side, each as the Trainer would: clipping, then AdamW or SGD of torch.

    Args:
        thetas (`torch.Tensor`, `(m, p)`): where they begin.
        moments (`dict`, *optional*): the optimizer's state `(p,)` to begin with, after `updates` updates.

    Returns:
        `torch.Tensor`: the trained parameters, `(m, p)`.
    """
    parts = []
    for rows in torch.arange(len(thetas)).split(max(1, AT_ONCE // thetas.shape[1])):
        own = (Batch(b.rows if b.rows.ndim == 1 else b.rows[rows], b.present[rows], b.rate) for b in batches)
        parts.append(_train(task, network, thetas[rows], own, moments or {}, updates, len(batches)))
    return torch.cat(parts)


def _train(
    task: Task,
    network: Network,
    thetas: torch.Tensor,
    batches: Iterator[Batch],
    moments: dict[str, torch.Tensor],
    updates: int,
    steps: int,
) -> torch.Tensor:
    parameter = nn.Parameter(thetas.clone())
    optimizer = _optimizer(task, parameter)
    if moments:
        state = {name: value.expand_as(thetas).clone() for name, value in moments.items()}
        optimizer.state[parameter] = {"step": torch.tensor(float(updates))} | state
    limit = task.settings.get("max_grad_norm", 1.0)
    x, y = task.train_tensors
    for batch in tqdm(batches, total=steps, desc=f"Training {len(thetas)} models", unit="step", leave=False):
        shared = None if batch.rows.ndim == 1 else 0
        gradient = vmap(grad(network.loss), (0, shared, shared, 0))(
            parameter.detach(), x[batch.rows], y[batch.rows], batch.present
        )
        if limit:
            gradient *= (limit / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = batch.rate
        optimizer.step()
    return parameter.detach()


def train_one(
    model: nn.Module,
    task: Task,
    theta: torch.Tensor,
    batches: list[Batch],
    *,
    moments: dict[str, torch.Tensor] | None = None,
    updates: int = 0,
    seed: int = 0,
) -> nn.Module:
    """
    The same for one large model, which is trained in place with AdamW by plain autograd, with its own dropout.

    Args:
        moments (`dict[str, torch.Tensor]`): the optimizer's state `(p,)` after `updates` steps.
        seed (`int`): of the dropout masks.
    """
    nn.utils.vector_to_parameters(theta.clone(), model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    sizes = [p.numel() for p in model.parameters()]
    held = {name: value.split(sizes) for name, value in (moments or {}).items()}
    for place, p in enumerate(model.parameters() if held else ()):
        state = {name: parts[place].view_as(p).clone() for name, parts in held.items()}
        optimizer.state[p] = {"step": torch.tensor(float(updates)), **state}
    x, y = task.train_tensors
    torch.manual_seed(seed)
    model.train()
    for batch in batches:
        rows, present = batch.rows.flatten(), batch.present.flatten()
        inputs = dict(zip(task.inputs, x[rows].unbind(1), strict=True))
        losses = nn.functional.cross_entropy(model(**inputs).logits, y[rows], reduction="none")
        ((losses * present).sum() / len(rows)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), task.settings.get("max_grad_norm", 1.0))
        optimizer.param_groups[0]["lr"] = batch.rate
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _optimizer(task: Task, parameter: nn.Parameter) -> torch.optim.Optimizer:
    if task.settings.get("optim") == "sgd":
        return torch.optim.SGD([parameter], lr=0.0)
    return torch.optim.AdamW([parameter], lr=0.0, weight_decay=0.0)  # as the Trainer has it by default


def window_batches(run: Run, absent: list[np.ndarray]) -> list[Batch]:
    """The recorded steps of the window for models that each leave out some rows."""
    n = len(run.task.train)
    kept = torch.ones(len(absent), n)
    for model, rows in enumerate(absent):
        kept[model, torch.from_numpy(rows)] = 0.0
    steps = [run.trajectory.step(t) for t in range(run.first, len(run.trajectory))]
    ids = [torch.from_numpy(step.ids) for step in steps]
    return [Batch(rows, kept[:, rows], step.learning_rates[0]) for rows, step in zip(ids, steps, strict=True)]


def fresh(task: Task, subsets: list[np.ndarray], seeds: list[int]) -> tuple[torch.Tensor, list[Batch]]:
    """New models `(m, p)` and the steps of their training, each on its own rows and with its own seed."""
    models = []
    for seed in seeds:
        set_seed(seed)
        models.append(nn.utils.parameters_to_vector(task.model().parameters()).detach())
    size, epochs = task.settings["per_device_train_batch_size"], int(task.settings["num_train_epochs"])
    generators = [np.random.default_rng(seed) for seed in seeds]
    rows: list[torch.Tensor] = []
    for _ in range(epochs):
        order = torch.from_numpy(np.stack([g.permutation(s) for g, s in zip(generators, subsets, strict=True)]))
        rows.extend(order.split(size, dim=1))
    rates = _rates(task, len(rows))
    return torch.stack(models), [Batch(r, torch.ones(r.shape), h) for r, h in zip(rows, rates, strict=True)]


def _rates(task: Task, steps: int) -> list[float]:
    """The learning rate of each step of a run of so many steps."""
    with tempfile.TemporaryDirectory() as directory:
        options = arguments(task, Path(directory), 0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=options.learning_rate)
    schedule = get_scheduler(options.lr_scheduler_type, optimizer, options.get_warmup_steps(steps), steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates
