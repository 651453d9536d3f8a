"""The scores that are judged: the dataset's own where they are of this run, else new ones."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from hf_prune._core.config import ScoringConfig
from hf_prune._core.digest import content_digest
from hf_prune._core.scoring import require_scoring, scoring_of
from hf_prune.influence import add_influence
from hf_prune.trajectory.trajectory import Trajectory

# Queries where the dataset was not scored: their correlation is known to about 1 / sqrt(32).
DIRECTIONS = 32
FEWEST = 4


def scored_rows(
    dataset: Dataset, record: Trajectory, part: Trajectory, eval_dataset: Dataset, options: dict[str, Any]
) -> Dataset:
    """
    The rows with influence columns over the steps that are re-run.

    Args:
        record (`Trajectory`): The whole record.
        part (`Trajectory`): The part of it that is re-run.
        options (`dict`): Further arguments of `add_influence`.
    """
    own = _own_config(dataset, record, eval_dataset)
    if own is not None and part.window == record.window:
        scored = dataset
    else:
        config = own or ScoringConfig(mode="visits", directions=min(DIRECTIONS, len(dataset)))
        asked = options | config.arguments() | {"until": None}  # the part ends where it ends
        scored = add_influence(dataset, part, eval_dataset=eval_dataset, **asked)
    if require_scoring(scored).config.directions < FEWEST:
        raise ValueError(
            f"Fewer than {FEWEST} directions leave no correlation to measure: score with more of them, or pass the "
            "dataset without influence columns."
        )
    return scored


def _own_config(dataset: Dataset, record: Trajectory, eval_dataset: Dataset) -> ScoringConfig | None:
    """How the dataset was scored, if it was from this run and these held-out rows."""
    known = scoring_of(dataset)
    if known is None or known.run is None or known.run.trajectory_digest != record.digest:
        return None
    same = known.config.eval_digest == content_digest(eval_dataset) and known.config.column in dataset.column_names
    return known.config if same else None
