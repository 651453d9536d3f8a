"""Runs whose truth is known: every row spells its own id in its tokens, and the model notes what it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune.record import TrajectoryCallback, with_example_ids
from tests.toys import arguments

WIDTH = 6


class Telling(nn.Module):
    """A tiny token classifier that keeps the ids of every training batch in `seen`."""

    def __init__(self, rows: int):
        super().__init__()
        self.words = nn.Embedding(rows + 1, 6)
        self.head = nn.Linear(6, 3)
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self._note(input_ids)
        logits = self.head(self.words(input_ids).mean(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    @torch.compiler.disable
    def _note(self, input_ids: torch.Tensor) -> None:
        if self.training:
            self.seen.append((input_ids[:, 0] - 1).tolist())


def telling_rows(rows: int) -> Dataset:
    """Row i is the token i + 1, over and over; rows differ in length."""
    lengths = [2 + (i * 7) % 5 for i in range(rows)]
    return Dataset.from_dict(
        {"input_ids": [[i + 1] * length for i, length in enumerate(lengths)], "labels": [i % 3 for i in range(rows)]}
    )


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads tokens with 0 and keeps all other columns. Batches that one process hands out must be of one width."""
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}
    batch["input_ids"] = torch.tensor([list(row["input_ids"]) + [0] * (WIDTH - len(row["input_ids"])) for row in rows])
    return batch


@dataclass(frozen=True)
class Case:
    """One way to run the Trainer."""

    rows: int = 40
    arguments: dict[str, Any] = field(default_factory=dict)
    kind: str = "map"  # or "numbered" (a Dataset with ids), "stream"


SAMPLING = TrainingArguments.__dataclass_fields__["train_sampling_strategy"].metadata["choices"]
STREAM = {"remove_unused_columns": False, "max_steps": 9}
CASES = {
    "plain": Case(),
    "uneven last batch": Case(rows=37),
    "accumulation with a short last cycle": Case(rows=36, arguments={"gradient_accumulation_steps": 4}),
    "drop last": Case(rows=37, arguments={"dataloader_drop_last": True}),
    "two workers": Case(rows=37, arguments={"dataloader_num_workers": 2}),
    "persistent workers": Case(arguments={"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
    "group by length": Case(rows=37, arguments={"train_sampling_strategy": "group_by_length"}),
    "sequential": Case(arguments={"train_sampling_strategy": "sequential"}),
    "max steps": Case(arguments={"max_steps": 7, "gradient_accumulation_steps": 2}),
    "sampler of torch": Case(rows=37, arguments={"accelerator_config": {"use_seedable_sampler": False}}),
    "uneven batches": Case(rows=37, arguments={"accelerator_config": {"even_batches": False}}),
    "split batches": Case(rows=37, arguments={"accelerator_config": {"split_batches": True}}),
    "data seed": Case(rows=37, arguments={"data_seed": 5}),
    "bf16": Case(arguments={"bf16": True}),
    "numbered": Case(rows=37, kind="numbered", arguments={"remove_unused_columns": False}),
    "dispatched batches": Case(
        rows=36,
        kind="numbered",
        arguments={"remove_unused_columns": False, "accelerator_config": {"dispatch_batches": True}},
    ),
    "stream": Case(kind="stream", arguments={**STREAM, "gradient_accumulation_steps": 2}),
    "dispatched stream": Case(kind="stream", arguments={**STREAM, "accelerator_config": {"dispatch_batches": True}}),
}
if "batch_rebalance" in SAMPLING:  # older versions of transformers do not have it
    rebalanced = {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2}
    CASES["batch rebalance"] = Case(rows=37, arguments=rebalanced)


def run(
    case: Case,
    directory: Path,
    *,
    resume: str | bool | None = None,
    callbacks: list[Any] | None = None,
    trajectory: str = "trajectory",
    **overrides: Any,
) -> Telling:
    """Trains under recording and returns the model, which knows what it saw."""
    set_seed(0)
    model = Telling(case.rows)
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 4, **case.arguments, **overrides}
    trainer = Trainer(
        model,
        arguments(directory / "out", **settings),
        train_dataset=dataset_of(case),
        data_collator=pad,
        callbacks=[TrajectoryCallback(directory / trajectory, id_column=None), *(callbacks or [])],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def dataset_of(case: Case) -> Any:
    rows = telling_rows(case.rows)
    if case.kind == "map":
        return rows
    if case.kind == "numbered":
        return with_example_ids(rows)
    return with_example_ids(rows.to_iterable_dataset())
