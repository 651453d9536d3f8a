"""Is this the dataset that was trained on, and are the arguments sensible? One sentence each where not."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import nn

from hf_prune._core.config import ScoringConfig
from hf_prune._core.digest import column_digests
from hf_prune._core.doubts import doubt
from hf_prune.errors import TrajectoryError, UnsupportedError
from hf_prune.model.agreement import check_agreement
from hf_prune.model.micro_batches import most_rows
from hf_prune.model.objective import check_whole
from hf_prune.model.per_example import batch_gradient
from hf_prune.model.replay import Replay
from hf_prune.model.retreat import with_retreat
from hf_prune.model.rows import Rows
from hf_prune.optimizers import adjoint_class
from hf_prune.trajectory.trajectory import Step, Trajectory

logger = logging.getLogger(__name__)

# A recomputed gradient whose norm is off by more than this share is not that of the run.
NORM_TOLERANCE = 0.1
# Where cotangents grow this many times, the effect of a small change is unpredictable.
GROWTH_LIMIT = 100.0
# In runs of fewer updates a row is a large part of Adam's second moment (ARCHITECTURE.md tells what was measured).
FEW_STEPS = 64
_AS_TRAINED = "pass trainer.train_dataset, or the trainer in place of the dataset, as in add_influence(trainer, ...)"
_CONVERGE = (
    "training diverged, and no score could tell anything; train with a lower learning rate, more warm-up or clipping, "
    "and record that run."
)


def check_arguments(
    config: ScoringConfig,
    dataset: Any,
    eval_dataset: Any,
    train_dataset: Any,
    batch_size: Any,
    num_proc: Any,
    max_memory: Any,
) -> None:
    """
    Checks what [`ScoringConfig`] does not hold.

    Raises:
        `TypeError`, `ValueError`: for an argument that cannot be worked with.
    """
    for name, value in (("dataset", dataset), ("eval_dataset", eval_dataset), ("train_dataset", train_dataset)):
        if isinstance(value, DatasetDict | IterableDatasetDict):
            raise TypeError(f"{name} is a DatasetDict; pass one split of it, such as {name}['train'].")
        if isinstance(value, IterableDataset) and (name != "dataset" or train_dataset is None):
            raise TypeError(
                f"{name} is an IterableDataset; load it without streaming=True, or pass what was trained on as "
                "train_dataset= to score a stream of candidates."
            )
        if not isinstance(value, Dataset | IterableDataset) and not (name != "dataset" and value is None):
            raise TypeError(f"{name} must be a datasets.Dataset, not {type(value).__name__}.")
    for name, value in (("batch_size", batch_size), ("num_proc", num_proc)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number from 1 on, or None, not {value!r}.")
    if train_dataset is None and isinstance(dataset, Dataset) and config.directions > len(dataset):
        raise ValueError(
            f"directions={config.directions} is more than the {len(dataset)} rows; pass directions={len(dataset)}, or "
            "fewer."
        )
    if eval_dataset is not None and len(eval_dataset) == 0:
        raise ValueError("eval_dataset has no rows; pass held-out rows, or None.")
    if train_dataset is not None and config.mode == "visits":
        raise ValueError("Rows that were not trained on have no visits; score them with mode='expected'.")
    if max_memory is not None and (isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory < 1):
        raise ValueError(f"max_memory must be a number of bytes, or None, not {max_memory!r}.")


def check_dataset(dataset: Dataset, trajectory: Trajectory) -> None:
    """
    Compares the rows with the recorded content digests.

    Raises:
        `TrajectoryError`: when rows were added, removed, reordered or changed since the run was recorded.
    """
    if trajectory.manifest.n_rows is None:
        return  # a stream: its rows are known by their ids alone
    if len(dataset) != trajectory.n_rows:
        raise TrajectoryError(
            f"The dataset has {len(dataset)} rows and the recorded one had {trajectory.n_rows}; "
            f"{_AS_TRAINED}, without added or removed rows."
        )
    shared = [name for name in trajectory.dataset_columns if name in dataset.column_names]
    if trajectory.dataset_columns and not shared:
        raise TrajectoryError(
            f"The dataset has none of the recorded columns {sorted(trajectory.dataset_columns)}; "
            f"{_AS_TRAINED}, which has them prepared."
        )
    found = column_digests(dataset, shared)
    changed = [name for name in shared if found[name] != trajectory.dataset_columns[name]]
    if changed:
        raise TrajectoryError(
            f"Column {changed[0]!r} is not what was recorded (content digest {found[changed[0]][:12]} instead of "
            f"{trajectory.dataset_columns[changed[0]][:12]}): rows were changed or reordered; {_AS_TRAINED}."
        )


def check_model(model: nn.Module, trajectory: Trajectory) -> None:
    """
    Refuses a model that diverged, or that is spread over processes.

    Raises:
        `UnsupportedError`: if a parameter is NaN or infinite, or sharded.
    """
    check_whole(model)
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            step = _first_diverged(trajectory.steps())
            since = "" if step is None else f", since the gradient of step {step.index} was {step.grad_norm}"
            raise UnsupportedError(f"The parameter {name!r} of the model is NaN or infinite{since}: {_CONVERGE}")


def check_window(trajectory: Trajectory) -> None:
    """
    Refuses a window in which the run diverged.

    Raises:
        `UnsupportedError`: if a gradient that moved the model was NaN or infinite.
    """
    first, last = trajectory.window
    step = _first_diverged(trajectory.steps()[first:last])
    if step is not None:
        raise UnsupportedError(f"The gradient of step {step.index} was {step.grad_norm}: {_CONVERGE}")


def _first_diverged(steps: list[Step]) -> Step | None:
    return next((step for step in steps if not step.skipped and not math.isfinite(step.grad_norm)), None)


def check_chance(rows: Rows, held_out: Rows | None, draws: int) -> int:
    """
    Finds out whether rows are random, and if so lets each batch draw the same whenever it is fetched.

    Args:
        rows, held_out (`Rows`): The training rows, and the held-out ones.
        draws (`int`): Draws that were asked for.

    Returns:
        `int`: Draws to take: 1 where nothing is random.
    """
    if not rows.are_random() and (held_out is None or not held_out.are_random()):
        return 1
    rows.chance.number = 0
    if draws == 1:
        doubt(
            logger,
            "Rows are random (augmentation, masking, a collator that draws): a row that is fetched twice differs, and "
            "scores of one draw are little alike those of another; pass draws=8, which takes 8 times as long, or rows "
            "and a collator without chance, such as dataset.with_transform(eval_transform), which are less faithful.",
        )
    return draws


def check_objective(replay: Replay) -> None:
    """
    Compares what the run was trained on with what is scored, in training mode and then in eval mode.

    What makes gradients differ in eval mode makes the scores differ too: dropout, BatchNorm, random augmentation or
    masking.

    Raises:
        `UnsupportedError`: if the optimizer made no step in the window.
    """
    if not replay.steps():
        raise UnsupportedError(
            "Every step of the recorded window was skipped for gradients that overflowed, so no row moved the "
            "model there: record a run that trains, or one with a larger window."
        )
    check_agreement(replay)
    step = replay.trajectory.step(replay.trajectory.window[0])
    if step.skipped or replay.trajectory.manifest.unrecorded:
        return  # the norm of parameters that were not recorded is unknown
    norm = with_retreat(_norm, most_rows(replay.steps()), replay, step)
    if abs(norm - step.grad_norm) > NORM_TOLERANCE * step.grad_norm:
        doubt(
            logger,
            f"The gradient of step {step.index}, computed again, has norm {norm:.3g} where the run recorded "
            f"{step.grad_norm:.3g}: dropout, BatchNorm, random augmentation, a loss that is not the model's or "
            "another model make the scores less faithful; score the model that was trained, with the "
            "data_collator and loss that training used.",
        )


def _norm(at_once: int, replay: Replay, step: Step) -> float:
    """That of the step's gradient in eval mode."""
    visits, theta = replay.batch(step), replay.theta(step.index)
    return float(batch_gradient(replay.objective, theta, visits.batch, visits.weights, at_once).norm())


def has_few_steps(trajectory: Trajectory) -> bool:
    """Whether the optimizer had made fewer than `FEW_STEPS` updates when the window ended."""
    return trajectory.updates_before(trajectory.window[1]) < FEW_STEPS


def warn_of_few_steps(replay: Replay, engine: str) -> None:
    """Warns where the second moment is held, and steps that it is made of are asked about."""
    trajectory, manifest = replay.trajectory, replay.trajectory.manifest
    if not adjoint_class(manifest.optimizer["name"]).has_second_moment or not has_few_steps(trajectory):
        return
    if engine == "projected":
        held = "engine='projected' holds as it was. Use engine='dense' where it fits into memory, or"
    elif replay.rounded or "8bit" in manifest.optimizer["name"]:
        held = "is held as it was, because parameters or moments were rounded. Keep them in float32, or"
    else:
        return
    doubt(
        logger,
        f"The run made {trajectory.updates_before(trajectory.window[1])} updates: in so few steps a row makes up much "
        f"of Adam's second moment, which {held} train longer; diagnose() measures how far the scores can be trusted.",
    )


def warn_of_growth(trajectory: Trajectory, growth: float) -> None:
    """Warns where cotangents grew by so large a ratio that they are mostly noise."""
    if growth <= GROWTH_LIMIT:
        return
    first, last = trajectory.window
    doubt(
        logger,
        f"The sweep's cotangents grew {growth:.0f}-fold over steps {first} to {last}: this part of the run "
        "is chaotic, and scores hold more noise than influence; record with a smaller window, such as "
        f"window={0.5 * (last - first) / len(trajectory):.2f}.",
    )
