"""Are the arguments sensible, and which part of the run do they mean? One sentence each where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from hf_prune.trajectory.trajectory import Trajectory


def check(dataset: Any, eval_dataset: Any, groups: Any, steps: Any, batch_size: Any) -> None:
    """
    Raises:
        `TypeError`, `ValueError`: for an argument that cannot be worked with.
    """
    for name, value in (("dataset", dataset), ("eval_dataset", eval_dataset)):
        if not isinstance(value, Dataset):
            raise TypeError(f"{name} is a {type(value).__name__}; pass a datasets.Dataset, such as one split.")
    if len(eval_dataset) == 0:
        raise ValueError("eval_dataset has no rows; pass held-out rows.")
    if not isinstance(groups, Sequence) or not groups or not all(_is_share(share) for share in groups):
        raise ValueError(f"groups must hold shares in (0, 0.5], such as (0.05, 0.2), not {groups!r}.")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number from 1 on, or None, not {value!r}.")


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value <= 0.5


def replayed_part(trajectory: Trajectory, steps: int | None) -> Trajectory:
    """The run up to the last snapshot that lies at most `steps` after the window's first."""
    first, last = trajectory.window
    if steps is None or last - first <= steps:
        return trajectory.part(last)
    ends = [at for at in trajectory.snapshot_steps if first < at <= first + steps]
    if not ends:
        raise ValueError(
            f"There is no snapshot within {steps} steps of the window's first, at {first}; the next is "
            f"{trajectory.snapshot_steps[1] - first} steps away: pass steps of at least that."
        )
    return trajectory.part(ends[-1])
