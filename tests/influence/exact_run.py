"""A training run in float64 with everything kept: ground truth for the adjoints, written apart from the library."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_prune.trajectory.manifest import Parameter
from hf_prune.trajectory.trajectory import MicroBatch, Step
from tests.toys import Mlp, vectors


@dataclass
class ExactRun:
    """
    Trains a toy with a torch optimizer (Adam: its formula, the second moment as an input) and example weights.

    It offers what a sweep reads of a `Trajectory`, without interpolation and in float64.
    """

    name: str
    options: dict[str, Any]
    steps_count: int = 12
    batch: int = 6
    max_norm: float = 0.0
    lr: float = 0.2
    rows: int = 18
    seed: int = 0
    weights: torch.Tensor | None = None
    frozen: list[torch.Tensor] | None = None
    thetas: list[torch.Tensor] = field(default_factory=list)
    moments: list[torch.Tensor] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = Mlp(hidden=5).double()
        self.dataset = vectors(self.rows)
        self.order = [np.random.default_rng(t).permutation(self.rows)[: self.batch] for t in range(self.steps_count)]
        self.rates = [self.lr * (1 - t / (2 * self.steps_count)) for t in range(self.steps_count)]
        if self.weights is None:
            self.weights = torch.ones(self.rows, dtype=torch.float64)
        self._train()

    def _groups(self) -> list[dict[str, Any]]:
        """Two groups, as the Trainer makes them: the biases without weight decay."""
        decay = [p for n, p in self.model.named_parameters() if "bias" not in n]
        rest = [p for n, p in self.model.named_parameters() if "bias" in n]
        return [{"params": decay}, {"params": rest, "weight_decay": 0.0}]

    def _train(self) -> None:
        x = torch.tensor(self.dataset["x"], dtype=torch.float64)
        y = torch.tensor(self.dataset["labels"])
        adam = self.name in ("Adam", "AdamW")
        optimizer = getattr(torch.optim, self.name)(self._groups(), lr=self.lr, **self.options)
        self.optimizer = {
            "name": self.name,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        }
        first = {p: torch.zeros_like(p) for p in self.model.parameters()}
        second = {p: torch.zeros_like(p) for p in self.model.parameters()}
        moving = {p: torch.zeros_like(p) for p in self.model.parameters()}
        self.thetas, self.moments, self.norms = [self._flat()], [self._flat(second)], []
        for t in range(self.steps_count):
            ids = self.order[t]
            losses = nn.functional.cross_entropy(self.model(x[ids])["logits"], y[ids], reduction="none")
            optimizer.zero_grad()
            ((losses * self.weights[ids]).sum() / self.batch).backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm or float("inf"))
            self.norms.append(float(norm))
            for group in optimizer.param_groups:
                group["lr"] = self.rates[t]
            if adam:
                self._adam_step(optimizer.param_groups, first, second, moving, t)
            else:
                optimizer.step()
            self.thetas.append(self._flat())
            self.moments.append(self._flat(second))

    @torch.no_grad()
    def _adam_step(self, groups: list[dict[str, Any]], first: dict, second: dict, moving: dict, t: int) -> None:
        if self.frozen is not None:
            parts = self.frozen[t + 1].split([p.numel() for p in self.model.parameters()])
            held = dict(zip(self.model.parameters(), parts, strict=True))
        for group in groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                g = p.grad
                if self.name == "Adam":
                    g = g + group["weight_decay"] * p
                first[p] = b1 * first[p] + (1 - b1) * g
                moving[p] = b2 * moving[p] + (1 - b2) * g * g
                second[p] = torch.maximum(second[p], moving[p]) if group["amsgrad"] else moving[p]
                if self.frozen is not None:
                    second[p] = held[p].view_as(p)
                if self.name == "AdamW":
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                root = (second[p] / (1 - b2 ** (t + 1))).sqrt() + group["eps"]
                p.sub_(group["lr"] * first[p] / (1 - b1 ** (t + 1)) / root)

    def _flat(self, values: dict | None = None) -> torch.Tensor:
        return torch.cat(
            [(p if values is None else values[p]).detach().flatten() for p in self.model.parameters()]
        ).clone()

    # What a sweep reads of a trajectory.
    @property
    def manifest(self) -> SimpleNamespace:
        parameters = tuple(
            Parameter(name, tuple(p.shape), int("bias" in name)) for name, p in self.model.named_parameters()
        )
        return SimpleNamespace(
            parameters=parameters,
            optimizer=self.optimizer,
            max_grad_norm=self.max_norm,
            loss="model",
            snapshot_dtype="float32",
        )

    window = property(lambda self: (0, self.steps_count))
    snapshot_steps = property(lambda self: list(range(self.steps_count + 1)))

    def step(self, t: int) -> Step:
        micro = MicroBatch(rank=0, ids=tuple(int(i) for i in self.order[t]), scale=1.0, num_items=None)
        return Step(t, 0.0, (micro,), (self.rates[t], self.rates[t]), self.norms[t], skipped=False)

    def parameters_at(self, t: int) -> torch.Tensor:
        return self.thetas[t]

    def second_moment_at(self, t: int) -> torch.Tensor:
        return self.moments[t]

    def updates_before(self, t: int) -> int:
        return t
