"""What is known of a scoring and of a verification: dataclasses that go from one part of the package to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_prune._core.allowed import commit, hub_id, pick, plain, repository
from hf_prune._core.config import Config, ScoringConfig
from hf_prune._core.reading import check_fields, typed

LIBRARIES = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "numpy",
    "peft",
    "pyarrow",
    "scipy",
    "torch",
    "transformers",
    "trl",
)
"""Libraries whose versions are recorded and published."""
_GROUP = (
    "lr",
    "initial_lr",
    "betas",
    "eps",
    "weight_decay",
    "momentum",
    "dampening",
    "nesterov",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
    "fused",
    "foreach",
    "capturable",
    "differentiable",
)
_SCHEDULE = ("name", "lr_scheduler_type", "learning_rate", "warmup_steps", "warmup_ratio", "lr_scheduler_kwargs")
_RUN = (
    "world_size",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_grad_norm",
    "precision",
    "n_rows",
    "total_steps",
    "steps_per_epoch",
    "last_step",
    "window_start",
    "snapshot_dtype",
    "updates_before_start",
    "loss",
    "label_column",
    "complete",
)


@dataclass(frozen=True)
class RecordedRun:
    """
    The training run that scores came from: what may be published of it, and nothing else.

    Args:
        trajectory_digest (`str`, *optional*): Digest of the trajectory.
        model (`dict`): `class`, `id` on the Hub, `revision` and the number of trainable `parameters`.
        optimizer (`dict`): `name`, and hyper-parameters of its `groups`.
        schedule (`dict`, *optional*): Of the learning rate.
        seeds (`dict`): Of training and of the order of the rows.
        run (`dict`): Steps, batch sizes, processes, precision.
        versions (`dict`): Of the libraries.
    """

    trajectory_digest: str | None
    model: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any] | None
    seeds: dict[str, Any]
    run: dict[str, Any]
    versions: dict[str, Any]

    @classmethod
    def of(cls, digest: str | None, manifest: Mapping[str, Any]) -> RecordedRun:
        """Takes from a manifest what is on the allow-list: it may hold paths, and come from somebody else."""
        model, optimizer = manifest.get("model") or {}, manifest.get("optimizer") or {}
        return cls.from_dict(
            {
                "trajectory_digest": digest,
                "model": {
                    "class": model.get("class"),
                    "id": hub_id(model.get("name_or_path")),
                    "revision": model.get("revision"),
                    "parameters": _size(manifest.get("parameters")),
                },
                "optimizer": optimizer,
                "schedule": manifest.get("schedule"),
                "seeds": manifest.get("seeds") or {},
                "run": dict(manifest),
                "versions": manifest.get("versions") or {},
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The run, as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecordedRun:
        """
        Reads what `to_dict` wrote; of the parts of a part, those that are not on the allow-list are left out.

        Raises:
            `ValueError`: for a field that this version does not know, or one that is missing.
        """
        read = typed(values, cls)
        model, optimizer = read.model, read.optimizer
        groups = typed(optimizer.get("groups") or [], list[dict[str, Any]])
        return cls(
            trajectory_digest=plain(read.trajectory_digest),
            model={
                "class": plain(model.get("class")),
                "id": repository(model.get("id")),
                "revision": commit(model.get("revision")),
                "parameters": plain(model.get("parameters")),
            },
            optimizer={
                "name": plain(optimizer.get("name")),
                "groups": [pick(group, _GROUP) for group in groups],
            },
            schedule=pick(read.schedule, _SCHEDULE) or None,
            seeds=pick(read.seeds, ("seed", "data_seed")),
            run=dict.fromkeys(_RUN) | pick(read.run, _RUN),
            versions=pick(read.versions, ("python", *LIBRARIES)),
        )


def _size(parameters: Any) -> int | None:
    return sum(math.prod(int(side) for side in entry["shape"]) for entry in parameters) if parameters else None


@dataclass(frozen=True)
class ScoringRecord:
    """
    How the influence columns of a dataset were made; the dataset carries it, see [`scoring_of`].

    Args:
        config (`ScoringConfig`): What was asked, with `"auto"` resolved.
        run (`RecordedRun`, *optional*): The run that was scored.
        recorded_share (`float`, *optional*): Share of the run's steps that were in the recorded window, in (0, 1].
        held_out_curvature (`float`, *optional*): Mean curvature of the held-out loss in a row's logits.
        trained_columns (`tuple[str, ...]`): The columns that the model was trained on, which check sums hold for.
        other_columns (`tuple[str, ...]`): The other columns that were there, which check sums hold for too.
        candidates (`bool`): Whether the rows are others than those that the model was trained on.
        doubts (`tuple[str, ...]`): What was noticed that makes the scores less faithful, a sentence each.
    """

    config: ScoringConfig
    run: RecordedRun | None = None
    recorded_share: float | None = None
    held_out_curvature: float | None = None
    trained_columns: tuple[str, ...] = ()
    other_columns: tuple[str, ...] = ()
    candidates: bool = False
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in self.trained_columns + self.other_columns):
            raise ValueError("trained_columns and other_columns are names of columns: score the dataset again.")
        for name in ("recorded_share", "held_out_curvature"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{name} is a number, got {value!r}: score the dataset again.")
        if self.recorded_share is not None and not 0 < self.recorded_share <= 1:
            raise ValueError(f"recorded_share={self.recorded_share} is not in (0, 1]: score the dataset again.")

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
        known = {name: value for name, value in values.items() if value is not None}
        config, run = ScoringConfig.from_dict(values["config"]), known.pop("run", None)
        read = typed(known | {"config": {}}, cls)
        return replace(read, config=config, run=None if run is None else RecordedRun.from_dict(run))


@dataclass(frozen=True)
class Observed(Config):
    """
    What retraining showed, as card and provenance say it; fields that are None are unknown.

    Args:
        metric (`str`): Name of the metric.
        full, pruned, random (`float`, *optional*): The metric after training on all, on the kept and on random rows.
        gap, random_gap (`float`, *optional*): The metric on all rows minus that on the kept, and on random ones.
        interval (`list[float]`, *optional*): Interval of the gap.
        beside_random (`float`, *optional*): The metric on kept rows minus that on random ones.
        beside_random_interval (`list[float]`, *optional*): Interval of `beside_random`.
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
    beside_random: float | None = None
    beside_random_interval: list[float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise ValueError(
                "observed names no metric: pass for example observed={'metric': 'accuracy', 'gap': 0.01}."
            )
