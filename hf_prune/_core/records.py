"""What is known of a scoring and of a verification: dataclasses that go from one part of the package to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_prune._core.config import Config, ScoringConfig, check_fields


@dataclass(frozen=True)
class RecordedRun:
    """
    The training run that scores came from.

    Args:
        digest (`str`, *optional*): Digest of the trajectory.
        manifest (`dict`): What the trajectory's manifest says, as JSON holds it.
    """

    digest: str | None
    manifest: dict[str, Any]


@dataclass(frozen=True)
class ScoringRecord:
    """
    How the influence columns of a dataset were made; the dataset carries it, see [`scoring_of`].

    Args:
        config (`ScoringConfig`): What was asked, with `"auto"` resolved.
        run (`RecordedRun`, *optional*): The run that was scored.
        recorded_share (`float`, *optional*): Share of the run's steps that were in the recorded window.
        held_out_curvature (`float`, *optional*): Mean curvature of the held-out loss in a row's logits.
    """

    config: ScoringConfig
    run: RecordedRun | None = None
    recorded_share: float | None = None
    held_out_curvature: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record, as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoringRecord:
        """
        Reads what `to_dict` wrote, by this version or an older one.

        Raises:
            `ValueError`: for a field that this version does not know, or one that is missing or not allowed.
        """
        check_fields(cls, values)
        run = values.get("run")
        if run is not None:
            check_fields(RecordedRun, run)
        return cls(
            config=ScoringConfig.from_dict(values["config"]),
            run=None if run is None else RecordedRun(run["digest"], dict(run["manifest"])),
            recorded_share=values.get("recorded_share"),
            held_out_curvature=values.get("held_out_curvature"),
        )


@dataclass(frozen=True)
class Observed(Config):
    """
    What retraining showed, as card and provenance say it; fields that are None are unknown.

    Args:
        metric (`str`): Name of the metric.
        full, pruned, random (`float`, *optional*): The metric after training on all, on the kept and on random rows.
        gap, random_gap (`float`, *optional*): The metric on all rows minus that on the kept, and on random ones.
        interval (`list[float]`, *optional*): Interval of the gap.
        seeds (`int`, *optional*): Retrainings of each arm.
        protocol (`str`, *optional*): What the arms have the same number of.
        greater_is_better (`bool`, *optional*): Whether more of the metric is better.
        loss_change, random_loss_change (`float`, *optional*): The held-out loss on kept or random rows minus all rows.
        loss_interval (`list[float]`, *optional*): Interval of `loss_change`.
        seconds_full, seconds_pruned, seconds_random (`float`, *optional*): Mean seconds of one training.
    """

    metric: str
    full: float | None = None
    pruned: float | None = None
    random: float | None = None
    gap: float | None = None
    random_gap: float | None = None
    interval: list[float] | None = None
    seeds: int | None = None
    protocol: str | None = None
    greater_is_better: bool | None = None
    loss_change: float | None = None
    loss_interval: list[float] | None = None
    random_loss_change: float | None = None
    seconds_full: float | None = None
    seconds_pruned: float | None = None
    seconds_random: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise ValueError(
                "observed names no metric: pass for example observed={'metric': 'accuracy', 'gap': 0.01}."
            )
