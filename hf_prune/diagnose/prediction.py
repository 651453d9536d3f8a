"""The scores that are judged: the dataset's own where they are of this run, else new ones."""

from __future__ import annotations

import inspect
from typing import Any

from datasets import Dataset

from hf_prune._core.digest import content_digest
from hf_prune.influence import add_influence
from hf_prune.trajectory.trajectory import Trajectory

# Questions asked where the dataset was not scored: their correlation is known to about 1 / sqrt(32).
DIRECTIONS = 32
FEWEST = 4


def scored_rows(
    dataset: Dataset, record: Trajectory, stretch: Trajectory, eval_dataset: Dataset, options: dict[str, Any]
) -> Dataset:
    """
    The rows with influence columns over the stretch.

    Args:
        record (`Trajectory`): The whole record.
        stretch (`Trajectory`): The part of it that is re-run.
        options (`dict`): Further arguments of `add_influence`.
    """
    known = getattr(dataset.info, "hf_prune", None) or {}
    scoring = known.get("influence") or {}
    own = (
        known.get("trajectory", {}).get("digest") == record.digest
        and scoring.get("eval_digest") == content_digest(eval_dataset)
        and scoring.get("column") in dataset.column_names
    )
    if own and stretch is record:
        scored = dataset
    else:
        again: dict[str, Any] = {"mode": "visits", "directions": min(DIRECTIONS, len(dataset))}
        if own:
            known_names = inspect.signature(add_influence).parameters.keys() & scoring.keys()
            again = {name: scoring[name] for name in known_names}
        scored = add_influence(dataset, stretch, eval_dataset=eval_dataset, **(options | again))
    if scored.info.hf_prune["influence"]["directions"] < FEWEST:
        raise ValueError(
            f"Fewer than {FEWEST} directions leave no correlation to measure: score with more of them, or pass the "
            "dataset without influence columns."
        )
    return scored
