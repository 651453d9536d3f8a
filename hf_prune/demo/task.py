"""What a demo task consists of: three sets of rows, and a Trainer for any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_prune.demo.progress import TrainingBar


@dataclass(frozen=True)
class Sizes:
    """
    How large a demo is.

    Args:
        train (`int`): Training rows.
        dev (`int`): Held-out rows on which influence and gap are measured.
        test (`int`): Rows that accuracy is measured on, and that decide nothing.
        epochs (`int`): Epochs of every training.
        directions (`int`): Directions of the influence column.
    """

    train: int
    dev: int
    test: int
    epochs: int
    directions: int


@dataclass(frozen=True)
class Task:
    """
    A demo task.

    Args:
        name (`str`): `"digits"` or `"text"`.
        title (`str`): What is learned, in a few words.
        sizes (`Sizes`): How large it is.
        train (`Dataset`): Training rows.
        dev (`Dataset`): Held-out rows.
        test (`Dataset`): Test rows.
        model (`Callable[[], nn.Module]`): Makes a fresh model; its random weights follow the global seed.
        training (`dict[str, Any]`): TrainingArguments in addition to those that all tasks share.
        recording (`dict[str, Any]`): Arguments of `TrajectoryCallback` other than the directory.
        scoring (`dict[str, Any]`): Arguments of `add_influence` other than model and eval_dataset.
        trainer (`dict[str, Any]`): Arguments of the Trainer in addition to those that all tasks share.
        seeds (`int`): Retrainings of each arm.
        notes (`tuple[str, ...]`): What the reader has to know of the choices made.
    """

    name: str
    title: str
    sizes: Sizes
    train: Dataset
    dev: Dataset
    test: Dataset
    model: Callable[[], nn.Module]
    training: dict[str, Any]
    recording: dict[str, Any] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    notes: tuple[str, ...] = ()

    def factory(self, scratch: Path) -> Callable[[Dataset, int], Trainer]:
        """The Trainer factory that `verify` asks for; `scratch` is the Trainer's `output_dir`, which stays empty."""

        def make(train_dataset: Dataset, seed: int) -> Trainer:
            args = TrainingArguments(
                output_dir=str(scratch),
                num_train_epochs=self.sizes.epochs,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                log_level="error",
                per_device_eval_batch_size=256,
                **self.training,
            )
            trainer = Trainer(self.model(), args, train_dataset=train_dataset, **self.trainer)
            trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the result
            trainer.add_callback(TrainingBar())
            return trainer

        return make


def missing_extra(error: ImportError) -> ImportError:
    """The error for a package that the demo needs and that is not there."""
    return ImportError(f'The demo needs the package {error.name}: install it with pip install "hf-prune[demo]".')
