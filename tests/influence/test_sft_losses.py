"""
The losses of trl's `SFTTrainer`: of answers alone, of whole rows, of rows laid end to end, and of packed rows.

Truth is the recorded step without each row, by a plain model on the row's own tokens, each row by itself.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from hf_prune import Trajectory, TrajectoryCallback, add_influence, prune
from hf_prune.influence.queries import parameter_queries
from tests.influence.runs import distance
from tests.record.test_sft import WORDS, tokenizer
from tests.selection.test_raw_sft import TEMPLATE, raw_rows

trl = pytest.importorskip("trl", reason="trl is an optional integration")
STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
EOS = 1

Piece = tuple[list[int], list[bool]]
"""The tokens of a row, or of a piece that was packed into one, and which of them are learnt."""


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=WORDS + 2, **sizes, max_position_embeddings=128, pad_token_id=0, eos_token_id=EOS)
    )


def trained(rows: Dataset, directory: Path, **options: Any) -> Any:
    words = tokenizer()
    words.chat_template = TEMPLATE
    settings: dict[str, Any] = {"per_device_train_batch_size": 4, "report_to": [], "use_cpu": True}
    settings |= {
        "bf16": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    args = trl.SFTConfig(output_dir=str(directory / "out"), **(settings | STEP | options))
    recorder = TrajectoryCallback(directory / "t", window=1.0)
    trainer = trl.SFTTrainer(llama(), args, train_dataset=rows, processing_class=words, callbacks=[recorder])
    trainer.train()
    return trainer


def pieces_of(kind: str, row: dict[str, Any], *, answers_only: bool) -> list[Piece]:
    """What the model should see of a prepared row, read from its text."""
    read = lambda text: tokenizer()(text)["input_ids"]  # noqa: E731
    if kind == "text":
        ids = read(row["text"])
        return [(ids, [True] * len(ids))]
    if kind == "prompt":
        first, second = read(row["prompt"]), read(row["completion"])
    else:
        first, second = ([*read(message["content"]), EOS] for message in row["messages"])
    return [(first + second, [not answers_only] * len(first) + [True] * len(second))]


def moved(model: LlamaForCausalLM, rows: list[list[Piece]]) -> torch.Tensor:
    """The move of an SGD step on these rows, whose loss is the mean over the tokens that are learnt."""
    model = copy.deepcopy(model).train()
    losses = []
    for ids, learnt in (piece for row in rows for piece in row):
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        of_tokens = cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        losses.append(of_tokens[torch.tensor(learnt[1:])])
    torch.cat(losses).mean().backward()
    return -0.1 * torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]


def removals(trainer: Any, directory: Path, rows: list[list[Piece]], engine: str) -> float:
    """How far the predicted effects of leaving out each visited row lie from true ones, as a share."""
    record = Trajectory.open(directory / "t")
    step, before = record.step(0), llama()
    whole = moved(before, [rows[i] for i in step.ids])
    torch.testing.assert_close(whole, record.parameters_at(1) - record.parameters_at(0), rtol=1e-3, atol=1e-6)
    scored = add_influence(trainer, record, directions=14, space="parameters", mode="visits", engine=engine)
    queries = parameter_queries(whole, 14, seed=0)
    true = [queries @ (moved(before, [rows[i] for i in step.ids if i != gone]) - whole) for gone in step.ids]
    assert len(step.ids) == 4
    return distance(np.array(scored["influence"])[step.ids], torch.stack(true).numpy())


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("text", {}),
        ("text", {"padding_free": True, "max_length": None}),
        ("prompt", {}),
        ("prompt", {"completion_only_loss": False}),
        ("prompt", {"padding_free": True, "max_length": None}),
        ("messages", {}),
        ("messages", {"assistant_only_loss": True}),
        ("messages", {"assistant_only_loss": True, "padding_free": True, "max_length": None}),
    ],
)
def test_rows_have_the_losses_of_what_they_learn(kind: str, options: dict[str, Any], engine: str, tmp_path: Path):
    trainer = trained(raw_rows(kind, long=False), tmp_path, **options)
    answers_only = options.get("assistant_only_loss", options.get("completion_only_loss", kind == "prompt"))
    rows = [pieces_of(kind, row, answers_only=answers_only) for row in trainer.train_dataset]
    assert removals(trainer, tmp_path, rows, engine) < (2e-3 if engine == "dense" else 0.15)


def packed_pieces(row: dict[str, Any]) -> list[Piece]:
    """The pieces of a packed row, whose first tokens nothing foretells."""
    cuts = np.cumsum(row.get("seq_lengths", [len(row["input_ids"])]))[:-1]
    return [(ids.tolist(), [True] * len(ids)) for ids in np.split(np.array(row["input_ids"]), cuts)]


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_a_packed_row_is_its_pieces_by_themselves(strategy: str, engine: str, tmp_path: Path):
    rows = raw_rows("text", long=False)
    trainer = trained(rows, tmp_path, packing=True, packing_strategy=strategy, max_length=16)
    packed = [packed_pieces(row) for row in trainer.train_dataset]
    assert len(packed) < len(rows) / 2
    assert removals(trainer, tmp_path, packed, engine) < (2e-3 if engine == "dense" else 0.15)


def test_raw_rows_of_a_packed_run_are_scored_as_candidates_and_sum_to_the_packed_ones(tmp_path: Path):
    """What pieces would have added sums, over a packed row, to what that row did."""
    rows = raw_rows("text", long=False)
    trainer = trained(rows, tmp_path, packing=True, max_length=20, max_steps=-1, num_train_epochs=2)
    prepared = trl.SFTTrainer(
        llama(),
        trl.SFTConfig(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False),
        train_dataset=rows,
        processing_class=tokenizer(),
    ).train_dataset
    options: dict[str, Any] = {"directions": 8, "space": "parameters", "engine": "dense"}
    packed = add_influence(trainer, tmp_path / "t", **options)
    single = add_influence(prepared, tmp_path / "t", train_dataset=trainer, **options)
    row_of = {tuple(row["input_ids"]): place for place, row in enumerate(single)}
    effects, taken = np.array(single["influence"]), set()
    for row in packed:
        own = [row_of[tuple(ids)] for ids, _ in packed_pieces(row)]
        assert taken.isdisjoint(own)
        taken |= set(own)
        np.testing.assert_allclose(effects[own].sum(0), row["influence"], rtol=2e-3, atol=1e-6)
    assert len(taken) == len(rows)
    with pytest.raises(ValueError, match=r"were packed, each of several raw ones .* with packing=False"):
        prune(packed, keep=0.5).selection.apply(rows)
    kept = prune(single, keep=0.5).selection.apply(rows)
    assert len(kept) == len(rows) / 2
    assert kept.column_names == ["text"]


def test_packed_rows_without_the_trainers_collator_are_refused(tmp_path: Path):
    trainer = trained(raw_rows("text", long=False), tmp_path, packing=True, max_length=16)
    with pytest.raises(ValueError, match=r"Rows were packed .*: pass data_collator=trainer.data_collator, or"):
        add_influence(trainer.train_dataset, tmp_path / "t", model=trainer.model, directions=8)
