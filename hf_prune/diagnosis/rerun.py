"""Part of a recorded run, retrained in plain torch with some rows left out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_prune._core import compat
from hf_prune.influence.clipping import clip_factor
from hf_prune.model.objective import Objective
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from hf_prune.model.weights import WeightedBatch, without
from hf_prune.optimizers import KINDS, adjoint_class
from hf_prune.trajectory.manifest import Manifest
from hf_prune.trajectory.trajectory import Step

# exp(-3) is a twentieth.
MEMORY = 3


@dataclass(frozen=True)
class ReplayedUpdate:
    """One update to make: its micro-batches, and the rates and the recorded norm of the step that it comes from."""

    step: Step
    parts: tuple[WeightedBatch, ...]
    learning_rates: tuple[float, ...]


class Rerun:
    """
    Trains from the window's first snapshot on, with torch's own optimizer and from what was recorded alone.

    Parameters and second moment start as recorded; momentum, which is not recorded, is rebuilt from the batches of
    the steps before. The model is in eval mode unless dropout is asked for, and in full precision.

    Args:
        replay (`Replay`): The recorded run with its model and rows.
    """

    def __init__(self, replay: Replay):
        self.replay = replay
        trainable = sum(p.numel() for p in replay.objective.model.parameters() if p.requires_grad)
        # The norm of parameters that were not recorded is unknown: then the recorded factor of clipping is kept.
        self.clips_again = trainable == replay.trajectory.manifest.n_parameters

    def updates(self, steps: Iterable[Step]) -> Iterator[ReplayedUpdate]:
        """The recorded updates."""
        for step in steps:
            yield ReplayedUpdate(step, tuple(self.replay.micro_batches(step)), step.learning_rates)

    def train(
        self, updates: Iterable[ReplayedUpdate], left_out: np.ndarray, *, dropout: bool = False, bar: Any = None
    ) -> torch.Tensor:
        """
        Makes the updates and returns the parameters `(p,)` at their end.

        Args:
            updates (`Iterable[ReplayedUpdate]`): What to make.
            left_out (`np.ndarray`): `(n,)`, bool; rows to leave out. Denominators shrink if they count tokens.
            dropout (`bool`, *optional*, defaults to `False`):
                Whether dropout is on. Its masks depend on the step alone, so that re-runs can be compared.
            bar (`tqdm`, *optional*): Goes on by one for each recorded step.
        """
        leaves = self._leaves()
        optimizer = self._optimizer(leaves)
        for leaf, state in zip(leaves, self._state, strict=True):
            optimizer.state[leaf] = {name: value.clone() for name, value in state.items()}
        done, last = self.replay.trajectory.window
        with torch.random.fork_rng(), training_mode(self.replay.objective.model) if dropout else nullcontext():
            for number, update in enumerate(updates):
                torch.manual_seed(number)
                self._update(optimizer, leaves, update, left_out)
                if bar is not None:
                    bar.update(update.step.index + 1 - done)
                    done = update.step.index + 1
        if bar is not None:
            bar.update(last - done)
        return _flat(leaves).detach()

    @cached_property
    def _state(self) -> list[dict[str, torch.Tensor]]:
        """
        The optimizer's state of each parameter where the window begins.

        Momentum is what the optimizer itself makes of the steps before at a learning rate of 0, so with their batches
        and weights but at the window's first parameters. Second moment and count are the recorded ones.
        """
        trajectory = self.replay.trajectory
        first, manifest = trajectory.window[0], trajectory.manifest
        leaves = self._leaves()
        optimizer = self._optimizer(leaves)
        nobody = np.zeros(len(self.replay.rows), dtype=bool)
        before = [trajectory.step(t) for t in range(max(0, first - _memory(manifest)), first)]
        for update in self.updates(step for step in before if not step.skipped):
            rest = replace(update, learning_rates=(0.0,) * len(update.learning_rates))
            self._update(optimizer, leaves, rest, nobody)
        states = [dict(optimizer.state[leaf]) for leaf in leaves]
        has_moment = adjoint_class(manifest.optimizer["name"]).has_second_moment
        if has_moment and self.replay.trajectory.updates_before(first) > 0:
            moments = self.replay.trajectory.second_moment_at(first).split(self.replay.objective.sizes)
            for leaf, state, moment in zip(leaves, states, moments, strict=True):
                moment = moment.view_as(leaf).to(leaf)
                state.setdefault("exp_avg", torch.zeros_like(leaf))
                state |= {"exp_avg_sq": moment, "max_exp_avg_sq": moment}
                state["step"] = torch.tensor(float(self.replay.trajectory.updates_before(first)))
        return states

    def _leaves(self) -> list[nn.Parameter]:
        values = self.replay.objective.unflatten(self.replay.theta(self.replay.trajectory.window[0]))
        return [nn.Parameter(value.clone()) for value in values.values()]

    def _optimizer(self, leaves: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The recorded optimizer over the leaves; its groups are all recorded ones."""
        manifest = self.replay.trajectory.manifest
        kind: Any = KINDS[manifest.optimizer["name"]]
        groups = []
        for index, values in enumerate(manifest.optimizer["groups"]):
            own = [
                leaf for leaf, parameter in zip(leaves, manifest.parameters, strict=True) if parameter.group == index
            ]
            groups.append({"params": own} | _options(kind, values))
        return kind(groups, lr=0.0)

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        leaves: list[nn.Parameter],
        update: ReplayedUpdate,
        left_out: np.ndarray,
    ) -> None:
        optimizer.zero_grad()
        for part, weights in zip(update.parts, without(update.parts, left_out), strict=True):
            (self.replay.objective.losses(_flat(leaves), part.batch) @ weights).backward()
        self._clip(leaves, update)
        for group, rate in zip(optimizer.param_groups, update.learning_rates, strict=True):
            group["lr"] = rate
        optimizer.step()

    def _clip(self, leaves: list[nn.Parameter], update: ReplayedUpdate) -> None:
        limit = self.replay.max_norm
        if limit > 0 and self.clips_again:
            nn.utils.clip_grad_norm_(leaves, limit)
        elif limit > 0:
            for leaf in leaves:
                if leaf.grad is not None:
                    leaf.grad.mul_(clip_factor(update.step.grad_norm, limit))


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Dropout on; BatchNorm stays as it is when scoring."""
    model.train()
    for module in model.modules():
        if compat.is_batch_norm(module):
            module.eval()
    try:
        yield
    finally:
        model.eval()


def has_dropout(objective: Objective, rows: Rows) -> bool:
    """Whether the model's output is another in training mode: measured on one row, because no attribute says so."""
    batch, theta = rows.batch([0]), objective.flatten()
    with torch.no_grad(), torch.random.fork_rng():
        calm = objective.logits(theta, batch.inputs)
        with training_mode(objective.model):
            return any(not torch.allclose(objective.logits(theta, batch.inputs), calm, rtol=1e-3) for _ in range(4))


def _memory(manifest: Manifest) -> int:
    """The number of steps whose gradients make up all but a twentieth of the momentum."""
    groups = manifest.optimizer["groups"]
    decays = [group["betas"][0] if "betas" in group else group.get("momentum", 0.0) for group in groups]
    return max(round(MEMORY / (1 - decay)) if decay else 0 for decay in decays)


def _options(kind: type[torch.optim.Optimizer], values: dict[str, Any]) -> dict[str, Any]:
    """The recorded hyper-parameters that this version's optimizer takes."""
    known = inspect.signature(kind).parameters
    return {name: tuple(v) if name == "betas" else v for name, v in values.items() if name in known}


def _flat(leaves: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([leaf.flatten() for leaf in leaves])
