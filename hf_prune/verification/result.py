"""What retraining showed: runs, arms of runs, and the gap between them, with intervals."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from hf_prune._core.reading import Count, Reader, Real, one_line, typed
from hf_prune._core.records import Observed
from hf_prune.verification import verdict

_READER = Reader(ValueError, "verify again")
LEVEL = 0.95
"""Level of all intervals."""


@dataclass(frozen=True)
class MeanInterval:
    """
    A mean over seeds and how sure it is.

    Args:
        mean (`float`): The mean.
        sd (`float`, *optional*): Standard deviation over seeds; None of one value.
        interval (`tuple[float, float]`, *optional*): Student's t interval of the mean at 95 %; None of one value.
    """

    mean: float
    sd: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float], *, level: float = LEVEL) -> MeanInterval:
        """Estimates the mean of independent values, one for each seed."""
        n = len(values)
        mean = math.fsum(values) / n
        if n == 1:
            return cls(mean, None, None)
        from scipy.stats import t

        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        half = float(t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
        return cls(mean, sd, (mean - half, mean + half))

    @classmethod
    def of_gap(cls, full: Sequence[float], less: Sequence[float], *, level: float = LEVEL) -> MeanInterval:
        """
        The generalization gap: the metric on all rows minus that on less of them, paired by seed.

        The module `generalization_gap` of `evaluate` computes the same.
        """
        return cls.of([before - after for before, after in zip(full, less, strict=True)], level=level)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"


@dataclass(frozen=True)
class Retraining:
    """
    One retraining.

    Args:
        seed (`int`): Its seed.
        metric (`float`): The metric on the held-out rows.
        loss (`float`, *optional*): The mean loss on the held-out rows; None if the model returned none.
        steps (`int`): Optimizer steps made.
        seconds (`float`): Seconds of training.
    """

    seed: Count
    metric: Real
    loss: Real | None
    steps: Count
    seconds: Real


@dataclass(frozen=True)
class Arm:
    """
    The retrainings on one choice of rows, one for each seed.

    Args:
        rows (`int`): Rows of each training set.
        runs (`tuple[Retraining, ...]`): In the order of the seeds.
    """

    rows: Count
    runs: Annotated[tuple[Retraining, ...], Meta(min_length=1)]

    @property
    def metric(self) -> MeanInterval:
        return MeanInterval.of([run.metric for run in self.runs])

    @property
    def loss(self) -> MeanInterval | None:
        losses = [run.loss for run in self.runs if run.loss is not None]
        return MeanInterval.of(losses) if len(losses) == len(self.runs) else None

    @property
    def seconds(self) -> float:
        """Mean seconds of one training."""
        return math.fsum(run.seconds for run in self.runs) / len(self.runs)


@dataclass(frozen=True)
class Verification:
    """
    What [`verify`] measured: models trained on all rows, on the pruned ones and on random ones, with the same seeds.

    Args:
        metric (`str`): Name of the metric.
        greater_is_better (`bool`): Whether more of it is better.
        budget (`str`): `"epochs"` or `"steps"`: what all arms have the same number of.
        full (`Arm`): Trained on all rows.
        pruned (`Arm`): Trained on the pruned rows.
        random (`Arm`, *optional*): Trained on random rows, as many as pruned ones, drawn again for each seed.
        predicted_loss_change (`float`, *optional*): The certificate's prediction for `loss_change`, for equal steps.
        predicted_random_loss_change (`float`, *optional*): The same for random rows, their mean.
    """

    metric: str
    greater_is_better: bool
    budget: Annotated[str, Meta(pattern=r"^(epochs|steps)$")]
    full: Arm
    pruned: Arm
    random: Arm | None = None
    predicted_loss_change: Real | None = None
    predicted_random_loss_change: Real | None = None

    def __post_init__(self) -> None:
        seeds = [run.seed for run in self.full.runs]
        for arm in (self.pruned, self.random):
            if arm is not None and [run.seed for run in arm.runs] != seeds:
                raise ValueError("The arms were trained with other seeds: retrain all of them with the same ones.")

    @property
    def gap(self) -> MeanInterval:
        """The metric on all rows minus that on the pruned ones, paired by seed."""
        return self._metric_gap(self.pruned)

    @property
    def random_gap(self) -> MeanInterval | None:
        """The metric on all rows minus that on random ones, paired by seed."""
        return None if self.random is None else self._metric_gap(self.random)

    @property
    def beside_random(self) -> MeanInterval | None:
        """The metric on the pruned rows minus that on random ones, paired by seed."""
        if self.random is None:
            return None
        return MeanInterval.of_gap([run.metric for run in self.pruned.runs], [run.metric for run in self.random.runs])

    @property
    def verdict(self) -> str:
        """What leaving the rows out costs, and whether random rows would do as well, in plain words."""
        return verdict.sentence(self)

    @property
    def loss_change(self) -> MeanInterval | None:
        """The held-out loss on the pruned rows minus that on all rows, paired by seed: what was predicted."""
        return _loss_change(self.full, self.pruned)

    @property
    def random_loss_change(self) -> MeanInterval | None:
        """The held-out loss on random rows minus that on all rows, paired by seed."""
        return None if self.random is None else _loss_change(self.full, self.random)

    @property
    def loss_beside_random(self) -> MeanInterval | None:
        """The held-out loss on the pruned rows minus that on random ones, paired by seed: both make as many steps."""
        return None if self.random is None else _loss_change(self.random, self.pruned)

    @property
    def predicted_loss_beside_random(self) -> float | None:
        """What the certificate predicts for `loss_beside_random`."""
        change, random = self.predicted_loss_change, self.predicted_random_loss_change
        return None if change is None or random is None else change - random

    def _metric_gap(self, arm: Arm) -> MeanInterval:
        return MeanInterval.of_gap([run.metric for run in self.full.runs], [run.metric for run in arm.runs])

    def explain(self) -> str:
        """The result in a few plain lines."""
        lines = [
            self.verdict,
            f"{len(self.full.runs)} retrainings an arm, equal {self.budget}; means with 95 % intervals over seeds.",
            f"{self.metric}: all {self.full.rows:,} rows {self.full.metric}, "
            f"pruned to {self.pruned.rows:,} rows {self.pruned.metric}"
            + (f", random rows {self.random.metric}." if self.random else "."),
            f"Gap (all minus pruned): {self.gap}" + (f"; random {self.random_gap}." if self.random else "."),
        ]
        if self.loss_change is not None:
            known = self.predicted_loss_change is not None
            predicted = f"{self.predicted_loss_change:+.4g}" if known else "not known"
            lines.append(f"Change of the held-out loss: predicted {predicted}, observed {self.loss_change}.")
            if known and self.budget == "epochs":
                lines.append("The prediction is for equal steps; fewer steps change the loss too (budget='steps').")
        beside = self.predicted_loss_beside_random
        if beside is not None and self.loss_beside_random is not None:
            lines.append(
                f"Held-out loss minus that of random rows trained for as many steps: predicted {beside:+.4g}, "
                f"observed {self.loss_beside_random}."
            )
        return "\n".join(lines)

    def observed(self) -> dict[str, Any]:
        """What card and provenance say of it: the `observed` of `push_to_hub`."""
        loss, random_loss, beside = self.loss_change, self.random_loss_change, self.beside_random
        return Observed(
            metric=self.metric,
            greater_is_better=self.greater_is_better,
            full=self.full.metric.mean,
            pruned=self.pruned.metric.mean,
            random=None if self.random is None else self.random.metric.mean,
            gap=self.gap.mean,
            random_gap=None if self.random_gap is None else self.random_gap.mean,
            interval=None if self.gap.interval is None else list(self.gap.interval),
            loss_change=None if loss is None else loss.mean,
            loss_interval=None if loss is None or loss.interval is None else list(loss.interval),
            random_loss_change=None if random_loss is None else random_loss.mean,
            seeds=len(self.full.runs),
            protocol=f"equal {self.budget}, gaps paired by seed, 95 % Student t interval over seeds",
            seconds_full=self.full.seconds,
            seconds_pruned=self.pruned.seconds,
            seconds_random=None if self.random is None else self.random.seconds,
            beside_random=None if beside is None else beside.mean,
            beside_random_interval=None if beside is None or beside.interval is None else list(beside.interval),
        ).to_dict()

    def to_dict(self) -> dict[str, Any]:
        """All runs, with the estimates added for readers of the JSON."""
        estimates = ("gap", "random_gap", "loss_change", "random_loss_change", "loss_beside_random")
        shown = {name: getattr(self, name) for name in estimates}
        return _to_jsonable(asdict(self)) | {
            "estimates": {
                name: None if value is None else _to_jsonable(asdict(value)) for name, value in shown.items()
            }
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verification:
        """Reads what `to_dict` wrote; the estimates are computed again."""
        return typed({name: value for name, value in values.items() if name != "estimates"}, cls)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Verification:
        """
        Reads what `hf-prune verify --out` wrote: the JSON of `to_dict`.

        Raises:
            `FileNotFoundError`: if there is no such file.
            `ValueError`: if it holds something else.
        """
        content = _READER.content(Path(file))
        if content is None:
            raise FileNotFoundError(f"There is no file {file}: pass what `hf-prune verify --out` wrote.")
        values = _READER.mapping(content, file)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(
                f"{file} is not what `hf-prune verify --out` wrote ({one_line(error).rstrip('.')}): {_READER.mend}."
            ) from error


def _loss_change(full: Arm, less: Arm) -> MeanInterval | None:
    changes = []
    for before, after in zip(full.runs, less.runs, strict=True):
        if before.loss is None or after.loss is None:
            return None
        changes.append(after.loss - before.loss)
    return MeanInterval.of(changes)


def _to_jsonable(value: Any) -> Any:
    """Tuples as lists, as they are after a JSON round trip."""
    if isinstance(value, dict):
        return {key: _to_jsonable(entry) for key, entry in value.items()}
    return [_to_jsonable(entry) for entry in value] if isinstance(value, list | tuple) else value
