"""Figures for the trackers that the Trainer reports to, through their own API."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import TrainingArguments

logger = logging.getLogger(__name__)

PREFIX = "hf_prune/"


def log_recording(figures: Mapping[str, float], args: TrainingArguments, step: int) -> None:
    """
    Logs figures to every tracker of `args.report_to` that is known here: TensorBoard, trackio and W&B.

    Call it at the Trainer's last log: the trackers are open until `on_train_end`, and callbacks hold no Trainer whose
    `log` they could call.

    Args:
        figures (`Mapping[str, float]`): By name; the trackers get them as `hf_prune/NAME`.
        args (`TrainingArguments`): The Trainer's.
        step (`int`): The optimizer step.
    """
    named = {PREFIX + name: float(value) for name, value in figures.items()}
    known: dict[str, Callable[[], None]] = {
        "tensorboard": lambda: _to_tensorboard(named, args, step),
        "trackio": lambda: _to_trackio(named | {"train/global_step": step}),
        "wandb": lambda: _to_wandb(named | {"train/global_step": step}),
    }
    for name in args.report_to or ():
        if name in known:
            _tried(name, known[name])


def log_scoring(figures: Mapping[str, float]) -> None:
    """
    Logs figures to a run of trackio or W&B that is open in this process; there is none after most trainings.

    Args:
        figures (`Mapping[str, float]`): By name; the trackers get them as `hf_prune/NAME`.
    """
    named = {PREFIX + name: float(value) for name, value in figures.items()}
    if "trackio" in sys.modules:
        _tried("trackio", lambda: _to_trackio(named))
    if "wandb" in sys.modules:
        _tried("wandb", lambda: _to_wandb(named))


def _tried(name: str, log: Callable[[], None]) -> None:
    try:
        log()
    except Exception as error:  # whatever a tracker raises, a finished training must not be lost to it
        logger.warning("The figures of the record did not get to %s (%s).", name, error)


def _to_tensorboard(named: Mapping[str, float], args: TrainingArguments, step: int) -> None:
    """Writes an event file of its own next to the Trainer's, whose writer no callback can reach: both are one run."""
    from torch.utils.tensorboard import SummaryWriter

    asked = os.environ.get("TENSORBOARD_LOGGING_DIR")
    root = Path(asked).expanduser() if asked else Path(args.output_dir or "")
    files = sorted(root.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return  # the Trainer reports to a writer that the user made
    with SummaryWriter(log_dir=str(files[-1].parent)) as writer:
        for name, value in named.items():
            writer.add_scalar(name, value, step)


def _to_trackio(named: Mapping[str, float]) -> None:
    import trackio  # type: ignore[import-not-found,unused-ignore]

    if trackio.context_vars.current_run.get() is not None:
        trackio.log(dict(named))


def _to_wandb(named: Mapping[str, float]) -> None:
    import wandb  # type: ignore[import-not-found,unused-ignore]

    if wandb.run is not None:
        wandb.log(dict(named))
