"""Runs whose statistics are known: the model itself notes ids, logits and labels of every training batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, set_seed

from hf_prune.record import TrajectoryCallback, with_example_ids
from hf_prune.trajectory import Trajectory, read_visits
from hf_prune.trajectory.visits import STATISTICS
from tests.record.truth import Case, pad, telling_rows
from tests.toys import arguments

WORDS = 5


class Noting(nn.Module):
    """Classifies rows; `notes` holds (ids, logits, labels) of every training batch, without the callback's help."""

    def __init__(self, rows: int):
        super().__init__()
        self.words = nn.Embedding(rows + 1, 6)
        self.head = nn.Linear(6, WORDS)
        self.notes: list[tuple[list[int], torch.Tensor, torch.Tensor]] = []

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        logits = self.logits(input_ids)
        if labels is None:
            return {"logits": logits}
        if self.training:
            self.notes.append(((input_ids[:, 0] - 1).tolist(), logits.detach().clone(), labels.clone()))
        return {"loss": self.loss(logits, labels, num_items_in_batch), "logits": logits}

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(input_ids).mean(1))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels)


class Tagging(Noting):
    """Classifies tokens, and divides by the Trainer's number of tokens."""

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        places = torch.linspace(0, 1, input_ids.shape[1])[:, None]
        return self.head(self.words(input_ids) + places)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: Any) -> torch.Tensor:
        total = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum", ignore_index=-100)
        return total / ((labels != -100).sum() if num_items is None else num_items)


class Continuing(Tagging):
    """Predicts the next token's label."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: Any) -> torch.Tensor:
        return super().loss(logits[:, :-1], labels[:, 1:], num_items)


class Measuring(Noting):
    """A regression on the label's number."""

    def __init__(self, rows: int):
        super().__init__(rows)
        self.head = nn.Linear(6, 1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: Any) -> torch.Tensor:
        return (logits - labels.float()).square().mean()


KINDS: dict[str, type[Noting]] = {
    "classes": Noting,
    "tokens": Tagging,
    "next tokens": Continuing,
    "values": Measuring,
}


def rows_for(kind: str, count: int) -> Dataset:
    """Row i spells i in its tokens. Tokens have labels, some of them ignored; every seventh row has none."""
    rows = telling_rows(count)
    if kind == "values":
        return rows.map(lambda row: {"labels": [float(row["labels"])]})
    if kind == "classes":
        return rows
    words = [[-100 if (i + t) % 4 == 0 or i % 7 == 6 else (i * 3 + t) % WORDS for t in range(6)] for i in range(count)]
    return rows.remove_columns("labels").add_column("labels", words)


def train_noting(
    kind: str, case: Case, directory: Path, *, callbacks: list[Any] | None = None, resume: Any = None, **overrides: Any
) -> Noting:
    """Trains under recording and returns the model, which knows what it saw."""
    set_seed(0)
    model = KINDS[kind](case.rows)
    rows = rows_for(kind, case.rows)
    settings = {"num_train_epochs": 4, "per_device_train_batch_size": 4, "learning_rate": 0.2, "optim": "sgd"}
    recorder = TrajectoryCallback(directory / "trajectory", row_statistics=True)
    trainer = Trainer(
        model,
        arguments(directory / "out", **(settings | case.arguments | overrides)),
        data_collator=pad,
        train_dataset=rows if case.kind == "map" else with_example_ids(rows.to_iterable_dataset()),
        callbacks=[recorder, *(callbacks or [])],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def statistics_of(kind: str, logits: list[Any], label: Any) -> list[float]:
    """The five statistics of one row, in plain Python."""
    if kind == "values":
        return [(logits[0] - float(label[0])) ** 2] + [math.nan] * 4
    if kind == "classes":
        return _of_one(logits, label)
    if kind == "next tokens":
        logits, label = logits[:-1], label[1:]
    items = [_of_one(z, y) for z, y in zip(logits, label, strict=True) if y != -100]
    return [sum(values) / len(items) for values in zip(*items, strict=True)] if items else [math.nan] * 5


def _of_one(logits: list[float], label: int) -> list[float]:
    top = max(logits)
    total = sum(math.exp(z - top) for z in logits)
    p = [math.exp(z - top) / total for z in logits]
    others = max(z for c, z in enumerate(logits) if c != label)
    error = math.sqrt(sum((q - (c == label)) ** 2 for c, q in enumerate(p)))
    return [-math.log(p[label]), p[label], logits[label] - others, error, float(logits.index(top) == label)]


def truth_of(kind: str, notes: list[tuple[list[int], torch.Tensor, torch.Tensor]]) -> list[list[float]]:
    """(id, five statistics) of every visit in order."""
    return [
        [i, *statistics_of(kind, z, y)]
        for ids, logits, labels in notes
        for i, z, y in zip(ids, logits.tolist(), labels.tolist(), strict=True)
    ]


def recorded_of(trajectory: Trajectory, rank: int = 0) -> list[list[float]]:
    """The same as the record has it, for one process."""
    visits = read_visits(trajectory)
    ranks = [b.rank for step in trajectory.steps() for b in step.micro_batches for _ in b.ids]
    table = zip(visits.ids.tolist(), *(getattr(visits, name).tolist() for name in STATISTICS), strict=True)
    return [list(row) for row, of in zip(table, ranks, strict=True) if of == rank]
