"""One run of a task through the real Trainer, recorded by our callback, with all that the other methods ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback
from hf_prune.trajectory.trajectory import Trajectory
from peers.tasks import Logits, Task


@dataclass
class Run:
    """
    A finished run.

    Attributes:
        model (`nn.Module`): the trained model.
        trajectory (`Trajectory`): what the callback recorded: batches, learning rates, snapshots.
        thetas (`dict[int, torch.Tensor]`): the parameters `(p,)` before each step, and after the last; mapped files.
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
    """Writes the parameters before every step of a run, and the optimizer's state before step `first`."""

    def __init__(self, first: Callable[[int], int], directory: Path):
        self.first, self.directory = first, directory

    def on_step_begin(self, args, state, control, *, model, optimizer, **kwargs):
        self._keep(state, model)
        if state.global_step == self.first(state.max_steps):
            held = [optimizer.state[p] for p in model.parameters()]
            moments = {
                name: torch.cat([part[name].flatten() for part in held])
                for name in ("exp_avg", "exp_avg_sq", "momentum_buffer")
                if all(isinstance(part.get(name), torch.Tensor) for part in held)
            }
            save_file(moments, self.directory / "moments.safetensors")

    def on_train_end(self, args, state, control, *, model, **kwargs):
        self._keep(state, model)

    def _keep(self, state, model) -> None:
        self.directory.mkdir(exist_ok=True)
        theta = nn.utils.parameters_to_vector(model.parameters()).detach()
        theta.numpy().tofile(self.directory / f"{state.global_step}.f32")


def arguments(task: Task, directory: Path, seed: int) -> TrainingArguments:
    """The recipe of a task."""
    return TrainingArguments(
        str(directory / "out"),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        **task.settings,
    )


def record(task: Task, directory: Path, *, seed: int = 0, window: float = 0.5, **options: Any) -> Run:
    """Trains a fresh model and records the run; `options` are further ones of the callback."""
    directory.mkdir(parents=True, exist_ok=True)
    recorder = TrajectoryCallback(directory / "trajectory", window=window, **options)
    keep = Keep(lambda steps: int((1 - window) * steps), directory / "thetas")
    set_seed(seed)
    model = task.model()
    Trainer(model, arguments(task, directory, seed), train_dataset=task.train, callbacks=[recorder, keep]).train()
    run = opened(task, directory)
    if run.first != keep.first(len(run.trajectory)):
        raise RuntimeError(f"The window began at step {run.first}, and the optimizer's state is of another step.")
    return run


def opened(task: Task, directory: Path) -> Run:
    """A run that was recorded in `directory`."""
    files = {int(file.stem): file for file in (directory / "thetas").glob("*.f32")}
    thetas = {t: torch.from_file(str(file), size=file.stat().st_size // 4) for t, file in sorted(files.items())}
    model = task.model()
    nn.utils.vector_to_parameters(thetas[max(thetas)].clone(), model.parameters())
    moments = load_file(directory / "thetas" / "moments.safetensors")
    return Run(task, model, Trajectory.open(directory / "trajectory"), thetas, moments)
