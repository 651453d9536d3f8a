"""One run of a task through the real Trainer, recorded by our callback, with all that the other methods ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback
from hf_prune.record.trajectory import Trajectory
from peers.tasks import Logits, Task

# Bytes up to which the parameters of every step are kept.
MEMORY = 1 << 30


@dataclass
class Run:
    """
    A finished run.

    Attributes:
        model (`nn.Module`): the trained model.
        trajectory (`Trajectory`): what the callback recorded: batches, learning rates, snapshots.
        thetas (`dict[int, torch.Tensor]`): the parameters `(p,)` before each step, and after the last; of a large
            model only at the ends of epochs and before the window.
        moments (`dict`): the optimizer's state `(p,)` before the window's first step.
    """

    task: Task
    model: nn.Module
    trajectory: Trajectory
    thetas: dict[int, torch.Tensor]
    moments: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first step of the window."""
        return self.trajectory.window[0]

    @property
    def last(self) -> torch.Tensor:
        """The trained parameters, `(p,)`."""
        return self.thetas[len(self.trajectory)]

    @property
    def steps_per_epoch(self) -> int:
        return len(self.trajectory) // int(self.task.settings["num_train_epochs"])

    def logits_model(self, theta: torch.Tensor | None = None) -> Logits:
        """A copy of the model as `x -> logits`, at `theta` or at the end of the run."""
        model = self.task.logits_model(self.model)
        if theta is not None:
            nn.utils.vector_to_parameters(theta, model.parameters())
        return model

    def checkpoints(self, first: int, most: int) -> list[int]:
        """Steps of at most `most` checkpoints after `first`, evenly spread over the ends of epochs."""
        ends = [t for t in range(self.steps_per_epoch, len(self.trajectory) + 1, self.steps_per_epoch) if t > first]
        take = torch.linspace(0, len(ends) - 1, min(most, len(ends))).round().long()
        return [ends[i] for i in take]


class Keep(TrainerCallback):
    """Keeps the parameters of a run, and the optimizer's state before step `first`."""

    def __init__(self, first: Callable[[int], int]):
        self.first = first
        self.thetas: dict[int, torch.Tensor] = {}
        self.moments: dict[str, torch.Tensor] = {}

    def on_step_begin(self, args, state, control, *, model, optimizer, **kwargs):
        first, ends = self.first(state.max_steps), state.max_steps // state.num_train_epochs
        theta = nn.utils.parameters_to_vector(model.parameters()).detach()
        small = 4 * len(theta) * state.max_steps < MEMORY
        if small or state.global_step == first or state.global_step % ends == 0:
            self.thetas[state.global_step] = theta
        if state.global_step == first:
            held = [optimizer.state[p] for p in model.parameters()]
            for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                if all(isinstance(part.get(name), torch.Tensor) for part in held):
                    self.moments[name] = torch.cat([part[name].flatten() for part in held]).clone()

    def on_train_end(self, args, state, control, *, model, **kwargs):
        self.thetas[state.global_step] = nn.utils.parameters_to_vector(model.parameters()).detach()


def arguments(task: Task, directory: Path, seed: int) -> TrainingArguments:
    """The recipe of a task."""
    return TrainingArguments(
        str(directory / "out"), report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=True, seed=seed, **task.settings,
    )  # fmt: skip


def record(task: Task, directory: Path, *, seed: int = 0, window: float = 0.5, snapshots_per_epoch: float = 1) -> Run:
    """Trains a fresh model and records the run; window and snapshots are the callback's own defaults."""
    directory.mkdir(parents=True, exist_ok=True)
    recorder = TrajectoryCallback(directory / "trajectory", window=window, snapshots_per_epoch=snapshots_per_epoch)
    keep = Keep(lambda steps: int((1 - window) * steps))
    set_seed(seed)
    model = task.model()
    Trainer(model, arguments(task, directory, seed), train_dataset=task.train, callbacks=[recorder, keep]).train()
    run = Run(task, model, Trajectory.open(directory / "trajectory"), keep.thetas, keep.moments)
    if run.first != keep.first(len(run.trajectory)):
        raise RuntimeError(f"The window began at step {run.first}, and the optimizer's state is of another step.")
    return run
