"""Is this the model that was recorded? Scores take from it what the record does not hold: another goes unseen."""

from __future__ import annotations

import logging

import torch

from hf_prune.errors import TrajectoryError
from hf_prune.model.objective import Objective
from hf_prune.trajectory.snapshots import samples_of
from hf_prune.trajectory.trajectory import Trajectory

logger = logging.getLogger(__name__)

# Rounding to these, by the snapshot or by loading the model, does not make another model.
_ROUNDED = (torch.float32, torch.bfloat16, torch.float16)
# Relative distance of the same parameters.
_SAME = 1e-5
# What half precision leaves of an entry.
_ROUNDING = 2**-7


def step_of_model(objective: Objective, record: Trajectory, until: int | None = None) -> int:
    """
    The step whose model was handed over, by comparing its parameters with the record's snapshots.

    Warns where that is not the run's last step, and where the model is none that the record knows.

    Args:
        objective (`Objective`): The model as it was handed over.
        record (`Trajectory`): The whole record.
        until (`int`, *optional*): The step that the user named; it is returned whatever the model is.

    Raises:
        `TrajectoryError`: if parameters that are not recorded have other values than in training.
    """
    last = record.window[1]
    if record.is_part:
        return last
    asked = last if until is None else until
    own, expected = objective.flatten().cpu(), record.snapshot_at(asked)
    steps = [asked, *(step for step in reversed(record.ends) if step != asked)]
    found = next((step for step in steps if _is_same(own, record.snapshot_at(step))), None)
    if found is None:
        apart = float((own - expected).norm() / expected.norm())
        logger.warning(
            f"The model is that of no step that can be scored ({_listed(record.ends)}): its trained parameters lie "
            f"{apart:.2g} of their length from those of step {asked}, which are scored in their place; pass the model "
            "as training left it."
        )
        return asked
    _check_others(objective, record, found)
    if until is None and found != last:
        logger.warning(
            f"The model is that of step {found} of {len(record)} (load_best_model_at_end, or an earlier checkpoint), "
            f"so that one is scored and later steps do not count; pass until={last} to score the run's last one."
        )
    return found if until is None else until


def _is_same(own: torch.Tensor, recorded: torch.Tensor) -> bool:
    """Whether two flat vectors `(p,)` are the same parameters, be it that one of them was rounded."""
    return any(
        float((own.to(kind).float() - recorded.to(kind).float()).norm()) <= _SAME * float(recorded.norm())
        for kind in _ROUNDED
    )


def _check_others(objective: Objective, record: Trajectory, step: int) -> None:
    noted, names = record.samples_at(step), objective.other_parameters
    if not len(noted):
        return
    found = samples_of([objective.fixed[name] for name in names]).cpu()
    if len(found) != len(noted):
        raise TrajectoryError(
            f"The trajectory is of another model: besides the recorded parameters this one has {len(names)} others, "
            "and the trained one had not as many; pass the model that was trained."
        )
    limit = _ROUNDING * torch.maximum(found.abs(), noted.abs()) + 1e-7
    differs = ((found - noted).abs() > limit).view(len(names), -1).any(1)
    if differs.any():
        raise TrajectoryError(
            f"The trajectory is of another model: {int(differs.sum())} of the {len(names)} parameters that it does "
            f"not hold, such as {names[int(differs.int().argmax())]!r}, have other values than in training; pass the "
            "model that was trained, an adapter on the base that it was trained on."
        )


def _listed(steps: list[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "...", *shown[-3:]])
