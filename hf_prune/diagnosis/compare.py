"""`diagnose`: predicted against true shifts on the user's own run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import Trainer

from hf_prune.diagnosis.checks import check, replayed_part
from hf_prune.diagnosis.diagnosis import Diagnosis
from hf_prune.diagnosis.experiment import Experiment
from hf_prune.diagnosis.prediction import scored_rows
from hf_prune.influence.checks import check_dataset
from hf_prune.model.replay import Replay
from hf_prune.model.trainer import Given
from hf_prune.trajectory import Trajectory

logger = logging.getLogger(__name__)


def diagnose(
    dataset: Dataset | Trainer,
    trajectory: str | Path | Trajectory,
    *,
    model: nn.Module | None = None,
    eval_dataset: Dataset | None = None,
    groups: Sequence[float] = (0.05, 0.05, 0.2, 0.2),
    steps: int | None = None,
    batch_size: int | None = None,
    data_collator: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    seed: int = 0,
    until: int | None = None,
) -> Diagnosis:
    """
    Says on your own run how far to trust its influence columns.

    The window is trained again from its first snapshot, with the recorded batches, weights, learning rates, clipping
    and optimizer: once as it was, once without each of a few random groups of rows (denominators shrink where they
    count tokens, and stay where they count rows), and under other conditions: another batch order, which is the noise
    floor, half the batch size, and dropout, if the model has any. What leaving out a group really does to the
    held-out logits and loss stands next to the sum of its rows' influence.

    It trains the re-run steps `len(groups) + 5` times, two more for a model with dropout; the progress bar
    shows how many steps that makes. Optimizers start with the recorded second moment, and with the momentum of the
    steps before as computed again at the first snapshot's parameters, in all re-runs alike. A warning is logged where
    the correlation is below 0.7: the predictions then explain less than half of the truth's variance.

    Args:
        dataset (`Dataset` or `Trainer`):
            The rows that were trained on. If `add_influence` scored them from this trajectory and `eval_dataset`,
            those columns are judged; otherwise they are scored here first, with `mode="visits"`. Or the Trainer, whose
            `train_dataset`, `model`, `data_collator` and `eval_dataset` are then taken where no others are passed.
        trajectory (`str`, `Path` or `Trajectory`):
            What [`TrajectoryCallback`] recorded.
        model (`nn.Module`, *optional*):
            The trained model, by default the Trainer's. It is copied, and left as it is.
        eval_dataset (`Dataset`, *optional*):
            Held-out rows, neither in the training nor in the test set; by default the Trainer's.
        groups (`Sequence[float]`, *optional*, defaults to `(0.05, 0.05, 0.2, 0.2)`):
            The share of the visited rows in each random group, in (0, 0.5].
        steps (`int`, *optional*):
            Re-run at most this many steps, up to a snapshot among them; rows are then scored again for these steps. By
            default the whole window.
        batch_size (`int`, *optional*, defaults to 32):
            Held-out rows in one forward pass.
        data_collator (`Callable`, *optional*):
            As given to the Trainer.
        loss (`Callable`, *optional*):
            As in [`add_influence`].
        seed (`int`, *optional*, defaults to 0):
            Draws the groups and the other batch order.
        until (`int`, *optional*):
            The step whose model is judged, as in `add_influence`; by default the one whose parameters `model` has.

    Returns:
        [`Diagnosis`]: print it, or see `explain()`, `verdict`, `correlation` and `to_dict()`.

    Raises:
        `TrajectoryError`: for a damaged trajectory, or one of another dataset or model.
        `UnsupportedError`: for an optimizer or a loss that has no adjoint here.
        `TypeError`, `ValueError`: for arguments that cannot be worked with.

    Example:

    ```py
    >>> print(diagnose(train, "run/trajectory", model=model, eval_dataset=dev))
    ```
    """
    given = Given.of(dataset, model=model, eval_dataset=eval_dataset, data_collator=data_collator)
    dataset, eval_dataset, data_collator = given.dataset, given.eval_dataset, given.data_collator
    model = given.trained_model
    check(dataset, eval_dataset, groups, steps, batch_size)
    whole = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(trajectory)
    check_dataset(dataset, whole)
    record = Replay.of(dataset, whole, model, data_collator=data_collator, loss=loss).end(until)
    part = replayed_part(record, steps)
    options: dict[str, Any] = {"model": model, "data_collator": data_collator, "loss": loss, "batch_size": batch_size}
    scored = scored_rows(dataset, record, part, eval_dataset, options)
    experiment = Experiment(scored, part, eval_dataset, seed=seed, **options)
    diagnosis = experiment.diagnose(groups)
    if not diagnosis.trusted:
        logger.warning(diagnosis.verdict)
    return diagnosis
