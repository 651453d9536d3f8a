"""Batches in parts of like length: less padding to compute, and the same scores."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, BigBirdConfig, BigBirdForSequenceClassification

from hf_prune import add_influence
from hf_prune.model import micro_batches
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.micro_batches import parts_of
from hf_prune.model.objective import Objective
from hf_prune.model.per_example import batch_gradient
from hf_prune.trajectory.manifest import Parameter
from tests import toys
from tests.influence.runs import distance, record

LENGTHS = (12, 3, 5, 11, 4, 2, 3)


class MeanOverAll(nn.Module):
    """A classifier that averages over all positions, padding as well."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(toys.VOCABULARY, 8), nn.Linear(8, toys.CLASSES)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, Any]:
        logits = self.head(self.embedding(input_ids).mean(1))
        return (
            {"logits": logits}
            if labels is None
            else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        )


def objective_of(model: nn.Module) -> Objective:
    return Objective(model, [Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters()])


def batch_of(side: str = "right", lengths: tuple[int, ...] = LENGTHS, labels: str = "classes") -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, toys.VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    places, reach = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    mask = (places < reach if side == "right" else places >= max(lengths) - reach).long()
    classes = torch.arange(len(lengths)) % toys.CLASSES
    found = {"classes": classes, "tokens": torch.where(mask == 1, ids % toys.CLASSES, IGNORED)}[labels]
    return Batch({"input_ids": ids * mask, "attention_mask": mask}, found)


@pytest.mark.parametrize("model", [toys.bert, toys.gpt2, toys.llama], ids=lambda make: make.__name__)
def test_rows_of_like_length_go_together_and_give_the_same_gradient(model: Any, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    objective, batch = objective_of(model()), batch_of()
    theta, weights = objective.flatten(), torch.rand(len(batch))
    whole = batch_gradient(objective, theta, batch, weights)
    monkeypatch.setattr(micro_batches, "ENOUGH", 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts = list(parts_of(objective, batch, len(batch)))
    assert sorted(int(i) for own, _ in parts for i in own) == list(range(len(batch)))
    assert [part.inputs["input_ids"].shape for _, part in parts] == [(1, 12), (1, 11), (2, 5), (3, 3)]
    for own, part in parts:
        for name, value in part.inputs.items():
            assert torch.equal(value, batch.inputs[name][own, : value.shape[1]])
        assert torch.equal(part.labels, batch.labels[own])
    assert distance(batch_gradient(objective, theta, batch, weights).numpy(), whole.numpy()) < 1e-5


def test_a_part_holds_no_more_tokens_than_went_through_the_model_at_once(monkeypatch: pytest.MonkeyPatch):
    objective, batch = objective_of(toys.bert()), batch_of()
    for rows in (1, 2, 5):
        for own, part in parts_of(objective, batch, rows):
            assert part.inputs["attention_mask"].numel() <= rows * max(LENGTHS)
            assert len(own) == len(part)


def test_padding_on_the_left_stays():
    objective, batch = objective_of(toys.llama()), batch_of("left")
    ((own, part),) = parts_of(objective, batch, len(batch))
    assert torch.equal(part.inputs["input_ids"], batch.inputs["input_ids"][own])


@pytest.mark.parametrize("kind", ["mean over all", "answers"])
def test_padding_that_the_model_looks_at_stays(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Positions of an answer are a choice among all, padding as well."""
    torch.manual_seed(0)
    monkeypatch.setattr(micro_batches, "ENOUGH", 1)
    batch = batch_of()
    model: nn.Module = MeanOverAll()
    if kind == "answers":
        config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertForQuestionAnswering(BertConfig(vocab_size=toys.VOCABULARY, **config)).eval()
        batch = Batch(batch.inputs, torch.tensor([[0, 1]] * len(batch)))
    given = {"label_names": ("start_positions", "end_positions")} if kind == "answers" else {}
    parameters = [Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters()]
    objective = Objective(model, parameters, **given)
    ((own, part),) = parts_of(objective, batch, len(batch))
    assert own.tolist() == list(range(len(batch)))
    assert part.equals(batch)


def test_a_loss_that_looks_at_padding_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """The model itself does not."""
    monkeypatch.setattr(micro_batches, "ENOUGH", 1)

    def by_length(logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        width = inputs["input_ids"].shape[1]
        return nn.functional.cross_entropy(logits, labels, reduction="none") * width

    model, batch = toys.bert(), batch_of()
    parameters = [Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters()]
    assert len(list(parts_of(Objective(model, parameters), batch, len(batch)))) > 1
    assert len(list(parts_of(Objective(model, parameters, loss=by_length), batch, len(batch)))) == 1


class OfTwo(nn.Module):
    """A classifier of two texts a row, each with a mask of its own."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(toys.VOCABULARY, 8), nn.Linear(16, toys.CLASSES)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        other_ids: torch.Tensor,
        other_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        means = [
            (self.embedding(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for ids, mask in ((input_ids, attention_mask), (other_ids, other_mask))
        ]
        logits = self.head(torch.cat(means, 1))
        return {"logits": logits, "loss": None if labels is None else nn.functional.cross_entropy(logits, labels)}


def test_a_second_text_is_not_cut_by_the_mask_of_the_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(micro_batches, "ENOUGH", 1)
    first, second = batch_of(), batch_of(lengths=(2, 3, 12, 4, 4, 2, 9))
    others = {"other_ids": second.inputs["input_ids"], "other_mask": second.inputs["attention_mask"]}
    batch = Batch(first.inputs | others, first.labels)
    assert [part.equals(batch) for _, part in parts_of(objective_of(OfTwo()), batch, len(batch))] == [True]


class OfVectors(nn.Module):
    """A classifier of rows of vectors, which are masked."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, toys.CLASSES)

    def forward(
        self, features: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, Any]:
        logits = self.head((features * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))
        return {"logits": logits, "loss": None if labels is None else nn.functional.cross_entropy(logits, labels)}


@pytest.mark.parametrize("kind", ["vectors", "as many numbers as tokens", "numbers of tokens for labels"])
def test_rows_with_vectors_stay_whole(kind: str):
    """Whether they belong to tokens nobody says."""
    batch = batch_of()
    mask = batch.inputs["attention_mask"]
    if kind == "vectors":
        batch = Batch({"features": torch.rand(*mask.shape, 3), "attention_mask": mask}, batch.labels)
        assert [part.equals(batch) for _, part in parts_of(objective_of(OfVectors()), batch, len(batch))] == [True]
    elif kind == "as many numbers as tokens":
        batch = Batch(batch.inputs, batch.labels, {"numbers": torch.rand(mask.shape)})
    else:
        batch = Batch(batch.inputs, torch.rand(mask.shape))
    assert batch.lengths() is None


def test_what_a_tokenizer_makes_is_cut_together():
    batch = batch_of()
    ids = batch.inputs["input_ids"]
    batch = Batch(batch.inputs | {"token_type_ids": ids % 2}, batch.labels, {"weight": torch.rand(len(ids))})
    cut = batch.cut(3)
    assert {name: tuple(value.shape) for name, value in cut.given.items()} == {
        "input_ids": (7, 3),
        "attention_mask": (7, 3),
        "token_type_ids": (7, 3),
        "weight": (7,),
    }
    assert torch.equal(cut.labels, batch.labels)


class Turning(MeanOverAll):
    """Long rows are read in another way, as where frequencies of positions are chosen by length."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, Any]:
        mask = attention_mask[..., None].float() * (2.0 if input_ids.shape[1] > 12 else 1.0)
        logits = self.head((self.embedding(input_ids) * mask).sum(1))
        return {"logits": logits, "loss": None if labels is None else nn.functional.cross_entropy(logits, labels)}


@pytest.mark.parametrize("batches", [((12, 3, 5), (30, 4, 6)), ((30, 14, 20), (30, 4, 6)), ((30, 4, 6), (12, 3, 5))])
def test_padding_is_looked_at_again_where_a_batch_is_wider_or_a_row_shorter(batches: Any):
    objective = objective_of(Turning())
    seen = [objective.padding.is_ignored(objective, batch_of(lengths=lengths)) for lengths in batches]
    assert seen == ([True, False] if batches[0] != (30, 4, 6) else [False, False])


def test_a_short_row_does_not_change_how_big_bird_attends():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BigBirdConfig(
        vocab_size=toys.VOCABULARY,
        block_size=4,
        num_random_blocks=1,
        max_position_embeddings=80,
        num_labels=2,
        **sizes,
    )
    objective, batch = objective_of(BigBirdForSequenceClassification(config)), batch_of(lengths=(72, 5))
    assert not objective.padding.is_ignored(objective, batch)
    assert objective.model.config.attention_type == "block_sparse"


def test_labels_beyond_the_mask_are_kept():
    batch = batch_of(labels="tokens")
    labels = batch.labels.clone()
    labels[5, 8] = 1
    lengths = Batch(batch.inputs, labels).lengths()
    assert lengths is not None
    assert lengths.tolist() == [12, 3, 5, 11, 4, 9, 3]


@pytest.mark.parametrize("engine", ["projected", "dense"])
def test_scores_are_those_of_whole_batches(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a recorded run, of its held-out rows, and of rows that it did not see."""
    torch.manual_seed(0)
    run = record(toys.bert(), toys.tokens(32), toys.tokens(8, seed=2), tmp_path, num_train_epochs=2)
    shutil.copytree(run.path, tmp_path / "copy")
    whole, found = replace(run, path=tmp_path / "copy"), []
    for enough, own in ((1 << 20, whole), (16, run)):
        monkeypatch.setattr(micro_batches, "ENOUGH", enough)
        given = {"engine": engine, "directions": 4, "curvature": "gauss-newton"}
        pool = add_influence(
            toys.tokens(12, seed=5),
            own.path,
            model=own.model,
            eval_dataset=own.held_out,
            train_dataset=own.rows,
            **given,
        )
        found.append(np.concatenate([own.score(engine, mode) for mode in ("visits", "expected")]))
        found.append(np.array(pool["influence"]))
    assert distance(found[2], found[0]) < 1e-3  # a byte an entry is kept
    assert distance(found[3], found[1]) < 1e-3
