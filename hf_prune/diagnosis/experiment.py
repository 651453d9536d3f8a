"""The re-runs of a diagnosis, and what is compared with what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm
from torch import nn

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.scoring import require_scoring
from hf_prune.diagnosis.answers import Answers, answers
from hf_prune.diagnosis.conditions import halved, reordered
from hf_prune.diagnosis.diagnosis import ORDER, Condition, Diagnosis, Group
from hf_prune.diagnosis.rerun import ReplayedUpdate, Rerun, has_dropout
from hf_prune.model.micro_batches import rows_of_a_pass
from hf_prune.model.replay import Replay
from hf_prune.trajectory.trajectory import Trajectory


class Experiment:
    """
    Re-runs of part of a recorded run.

    Args:
        scored (`Dataset`): The training rows with influence columns over that part.
        trajectory (`Trajectory`): The record, up to the end of that part.
        eval_dataset (`Dataset`): The held-out rows.
        model (`nn.Module`): The trained model.
        batch_size, data_collator, loss: As in `diagnose`.
        seed (`int`): Draws groups and order.
    """

    def __init__(
        self,
        scored: Dataset,
        trajectory: Trajectory,
        eval_dataset: Dataset,
        *,
        model: nn.Module,
        batch_size: int | None,
        data_collator: Callable[..., Any] | None,
        loss: Callable[..., Any] | None,
        seed: int,
    ):
        self.seed = seed
        self.scoring = require_scoring(scored).config
        columns = InfluenceColumns(self.scoring.column)
        values = scored.select_columns([columns.vector, columns.eval_loss]).with_format("numpy")
        self.influence = np.asarray(values[columns.vector][:], dtype=np.float64)
        self.loss_influence = np.asarray(values[columns.eval_loss][:], dtype=np.float64)
        self.replay = Replay.of(scored, trajectory, model, data_collator=data_collator, loss=loss)
        self.replay.rows.chance.number = 0  # re-runs differ by what they leave out, not by what random rows draw
        self.held_out = self.replay.rows.of(eval_dataset)
        self.batch_size = rows_of_a_pass(batch_size, model, trajectory.steps())
        self.rerun, self.steps = Rerun(self.replay), self.replay.steps()
        self.dropout = has_dropout(self.replay.objective, self.replay.rows)

    def diagnose(self, shares: Sequence[float]) -> Diagnosis:
        """Makes all re-runs."""
        visited = np.unique(np.concatenate([self.replay.row_of(step.ids) for step in self.steps]))
        groups = _draw(visited, len(self.influence), shares, self.seed)
        first, last = self.replay.trajectory.window
        runs = len(groups) + (7 if self.dropout else 5)
        title = f"Re-running {last - first} steps {runs} times"
        with tqdm(total=runs * (last - first), desc=title, unit="step") as bar:
            self._bar = bar
            nobody = np.zeros(len(self.influence), dtype=bool)
            base, theta = self._run(self._recorded, nobody)
            found = tuple(self._group(base, group, len(visited)) for group in groups)
            largest = max(groups, key=np.count_nonzero)
            conditions = [self._condition(ORDER, base, largest, self._reordered)]
            conditions.append(self._condition("half the batch size", base, largest, self._halved))
            if self.dropout:
                conditions.append(self._condition("dropout", base, largest, self._recorded, dropout=True))
        return Diagnosis(
            steps=(first, last),
            rows=len(visited),
            groups=found,
            conditions=tuple(conditions),
            replay_error=self._replay_error(theta),
            scoring=self.scoring,
        )

    def _run(
        self, updates: Callable[[], Iterable[ReplayedUpdate]], left_out: np.ndarray, dropout: bool = False
    ) -> tuple[Answers, Any]:
        theta = self.rerun.train(updates(), left_out, dropout=dropout, bar=self._bar)
        return answers(self.replay.objective, theta, self.held_out, self.scoring, self.batch_size), theta

    def _recorded(self) -> Iterable[ReplayedUpdate]:
        return self.rerun.updates(self.steps)

    def _reordered(self) -> Iterable[ReplayedUpdate]:
        return self.rerun.updates(reordered(self.replay, self.steps, self.seed))

    def _halved(self) -> Iterable[ReplayedUpdate]:
        return halved(self._recorded())

    def _predicted(self, group: np.ndarray) -> Answers:
        """The sum of the rows' influence."""
        return Answers(self.influence[group].sum(0), float(self.loss_influence[group].sum()))

    def _group(self, base: Answers, group: np.ndarray, visited: int) -> Group:
        true = self._run(self._recorded, group)[0] - base
        predicted = self._predicted(group)
        count = int(group.sum())
        return Group(
            rows=count,
            share=count / visited,
            shift=true.length,
            predicted_shift=predicted.length,
            correlation=true.correlation(predicted),
            relative_error=true.error(predicted),
            loss_change=true.loss,
            predicted_loss_change=predicted.loss,
        )

    def _condition(
        self,
        name: str,
        base: Answers,
        group: np.ndarray,
        updates: Callable[[], Iterable[ReplayedUpdate]],
        dropout: bool = False,
    ) -> Condition:
        whole = self._run(updates, np.zeros_like(group), dropout)[0]
        true = self._run(updates, group, dropout)[0] - whole
        predicted = self._predicted(group)
        alone = whole - base
        return Condition(name, alone.length, alone.loss, true.correlation(predicted), true.error(predicted))

    def _replay_error(self, theta: Any) -> float:
        start, end = (self.replay.theta(t) for t in self.replay.trajectory.window)
        return float((theta - end).norm() / (end - start).norm().clamp(min=1e-30))


def _draw(visited: np.ndarray, n: int, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """A random set of the visited rows for each share, bool of shape `(n,)`."""
    rng = np.random.default_rng([seed, 0])
    groups = []
    for share in shares:
        mask = np.zeros(n, dtype=bool)
        mask[rng.permutation(visited)[: max(1, round(share * len(visited)))]] = True
        groups.append(mask)
    return groups
