"""What re-running part of the run showed: groups of rows, other conditions, and how far to trust the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_prune._core.config import ScoringConfig

# A prediction whose correlation with the truth is below this explains less than half of its variance.
LOW = 0.7
# From here on it explains more than four fifths.
HIGH = 0.9

ORDER = "another batch order"


@dataclass(frozen=True)
class Group:
    """
    A random group of rows that was left out of the re-run.

    Args:
        rows (`int`): Rows of the group.
        share (`float`): Their share of the rows that were visited.
        shift (`float`): Length of the true shift over all queries.
        predicted_shift (`float`): Length of the predicted one.
        correlation (`float`): Pearson correlation of the two over the queries.
        relative_error (`float`): Length of their difference over that of the true shift.
        loss_change (`float`): True change of the mean held-out loss.
        predicted_loss_change (`float`): The predicted one.
    """

    rows: int
    share: float
    shift: float
    predicted_shift: float
    correlation: float
    relative_error: float
    loss_change: float
    predicted_loss_change: float


@dataclass(frozen=True)
class Condition:
    """
    The re-run under another condition of training.

    Args:
        name (`str`): `"another batch order"`, `"half the batch size"` or `"dropout"`.
        shift (`float`): Length of the shift that the condition alone makes, all rows in place.
        loss_change (`float`): The change of the held-out loss that it makes.
        correlation (`float`): Of the prediction with what leaving out the largest group does under this condition.
        relative_error (`float`): Of that prediction.
    """

    name: str
    shift: float
    loss_change: float
    correlation: float
    relative_error: float


@dataclass(frozen=True)
class Diagnosis:
    """
    How far to trust the influence columns of a run.

    Args:
        steps (`tuple[int, int]`): The part that was re-run: optimizer steps `first <= t < last`.
        rows (`int`): Rows that these steps visit.
        groups (`tuple[Group, ...]`): The groups that were left out, in the order in which they were asked for.
        conditions (`tuple[Condition, ...]`): Other conditions, the noise floor's first.
        replay_error (`float`):
            How far the re-run, with nothing changed, ends from the recorded end, in units of how far the
            parameters moved in these steps.
            Momentum is not recorded, and neither are dropout's masks and rounding in lower precision.
        scoring (`ScoringConfig`): How the rows were scored.
    """

    steps: tuple[int, int]
    rows: int
    groups: tuple[Group, ...]
    conditions: tuple[Condition, ...]
    replay_error: float
    scoring: ScoringConfig

    @property
    def correlation(self) -> float:
        """Of predicted and true shifts over the queries, mean over the groups."""
        return _mean([group.correlation for group in self.groups])

    @property
    def relative_error(self) -> float:
        """Of the predicted shifts, mean over the groups."""
        return _mean([group.relative_error for group in self.groups])

    @property
    def loss_relative_error(self) -> float:
        """Of the predicted changes of the held-out loss, over all groups."""
        off = math.hypot(*(group.predicted_loss_change - group.loss_change for group in self.groups))
        return off / max(math.hypot(*(group.loss_change for group in self.groups)), 1e-30)

    @property
    def noise_floor(self) -> float:
        """Length of the shift that another order of the same batches makes, nothing left out."""
        return next(condition.shift for condition in self.conditions if condition.name == ORDER)

    @property
    def trusted(self) -> bool:
        """Whether the correlation is not low."""
        return self.correlation >= LOW

    @property
    def verdict(self) -> str:
        """One sentence."""
        figure = f"predicted and true shifts correlate {self.correlation:.2f}"
        if self.correlation >= HIGH:
            return f"Trust the scores of groups and subsets of this run: {figure}."
        if self.trusted:
            return f"Trust the scores of this run for choosing subsets, not for single figures: {figure}."
        return (
            f"Do not trust the scores of this run: {figure}; record with a smaller window, more snapshots or all "
            "parameters, score with curvature='exact', or train without dropout."
        )

    def explain(self) -> str:
        """The diagnosis in plain words."""
        first, last = self.steps
        lines = [
            self.verdict,
            f"Steps {first} to {last} were retrained without groups of the {self.rows:,} rows that they visit, "
            "with the recorded batches, weights, learning rates and clipping.",
            f"Retrained with all rows, they end {self.replay_error:.2g} of their movement away from the recorded end.",
            f"Shifts are in the unit: {self.scoring.units}.",
        ]
        for group in self.groups:
            lines.append(
                f"- {group.rows:,} rows ({group.share:.0%}) left out: shift {group.shift:.3g}, predicted "
                f"{group.predicted_shift:.3g}, correlation {group.correlation:.2f}, relative error "
                f"{group.relative_error:.2f}; held-out loss {group.loss_change:+.3g}, predicted "
                f"{group.predicted_loss_change:+.3g}."
            )
        for condition in self.conditions:
            lines.append(
                f"- {condition.name.capitalize()} alone: shift {condition.shift:.3g}, held-out loss "
                f"{condition.loss_change:+.3g}. Leaving out the largest group then correlates "
                f"{condition.correlation:.2f} with the prediction."
            )
        smaller = [group.share for group in self.groups if group.shift < self.noise_floor]
        if smaller:
            lines.append(
                f"Another batch order moves the result more than leaving out {max(smaller):.0%} of the rows: a single "
                "training cannot show the effect of so few rows."
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.explain()

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON values, with the derived ones added."""
        derived = ("correlation", "relative_error", "loss_relative_error", "noise_floor", "trusted", "verdict")
        plain = asdict(self) | {
            "steps": list(self.steps),
            "groups": [asdict(group) for group in self.groups],
            "conditions": [asdict(condition) for condition in self.conditions],
        }
        return plain | {"derived": {name: getattr(self, name) for name in derived}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Reads what `to_dict` wrote; derived figures are computed again."""
        return cls(
            steps=(values["steps"][0], values["steps"][1]),
            rows=values["rows"],
            groups=tuple(Group(**group) for group in values["groups"]),
            conditions=tuple(Condition(**condition) for condition in values["conditions"]),
            replay_error=values["replay_error"],
            scoring=ScoringConfig.from_dict(values["scoring"]),
        )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
