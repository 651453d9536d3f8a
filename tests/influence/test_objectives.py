"""
Every kind of model and loss in the Trainer's own objective.

One recorded SGD step moves the parameters by minus what the removal of its visits would, summed: the ground truth for
losses, weights, padding and labels together.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

from hf_prune import Trajectory, TrajectoryCallback, add_influence
from hf_prune.influence.queries import parameter_queries
from tests import toys

STEP = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_steps": 1}


def tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, toys.VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side=side)


def ragged(rows: int = 24, label: str = "class") -> Dataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(2, toys.VOCABULARY, int(rng.integers(3, 11))).tolist() for _ in range(rows)]
    if label == "class":
        return Dataset.from_dict({"input_ids": ids, "labels": [sum(row) % toys.CLASSES for row in ids]})
    if label == "tokens":
        return Dataset.from_dict({"input_ids": ids, "labels": [[i % toys.CLASSES for i in row] for row in ids]})
    return Dataset.from_dict({"input_ids": ids})


def tagger() -> BertForTokenClassification:
    return BertForTokenClassification(
        BertConfig(
            vocab_size=toys.VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=toys.CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def language_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=toys.VOCABULARY,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=16,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )


def lora() -> nn.Module:
    return get_peft_model(toys.bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))


def regression() -> nn.Module:
    return toys.bert(problem_type="regression")


def moves(
    model: nn.Module,
    rows: Dataset,
    directory: Path,
    *,
    accumulation: int = 1,
    trainer: dict[str, Any] | None = None,
    **scoring: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The recorded step's move, asked along random directions: predicted from the visits, and true."""
    set_seed(0)
    args = toys.arguments(directory / "out", gradient_accumulation_steps=accumulation, **STEP)
    recorder = TrajectoryCallback(directory / "t", window=1.0)
    Trainer(model, args, train_dataset=rows, callbacks=[recorder], **(trainer or {})).train()
    record = Trajectory.open(directory / "t")
    moved = record.parameters_at(1) - record.parameters_at(0)
    scored = add_influence(rows, record, model=model, directions=20, space="parameters", mode="visits", **scoring)
    asked = parameter_queries(moved, 20, seed=0) @ moved
    return -np.array(scored["influence"]).sum(0), asked.numpy()


def check(predicted: np.ndarray, true: np.ndarray) -> None:
    assert np.linalg.norm(true) > 0
    assert np.linalg.norm(predicted - true) / np.linalg.norm(true) < 1e-3


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [toys.bert, toys.gpt2, toys.llama])
def test_ragged_rows_are_padded_as_the_trainers_tokenizer_did(make: Any, side: str, accumulation: int, tmp_path: Path):
    torch.manual_seed(0)
    trainer = {"processing_class": tokenizer(side)}
    check(*moves(make(), ragged(), tmp_path, accumulation=accumulation, trainer=trainer))


def test_lora(tmp_path: Path):
    torch.manual_seed(0)
    check(*moves(lora(), toys.tokens(24), tmp_path))


def test_regression(tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.tokens(24)
    targets = [[float(i % 5), 1.0, -1.0] for i in range(24)]
    check(*moves(regression(), rows.remove_columns("labels").add_column("labels", targets), tmp_path))


def test_images_made_by_a_transform(tmp_path: Path):
    torch.manual_seed(0)
    rows = toys.images(24)
    seen = rows.rename_column("pixel_values", "image")

    def transform(columns: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": torch.tensor(columns["image"]) * 2, "labels": columns["labels"]}

    model = toys.vit()
    set_seed(0)
    args = toys.arguments(tmp_path / "out", remove_unused_columns=False, **STEP)
    data = seen.with_transform(transform)
    Trainer(model, args, train_dataset=data, callbacks=[TrajectoryCallback(tmp_path / "t", window=1.0)]).train()
    record = Trajectory.open(tmp_path / "t")
    moved = record.parameters_at(1) - record.parameters_at(0)
    scored = add_influence(data, record, model=model, directions=20, space="parameters", mode="visits")
    asked = (parameter_queries(moved, 20, seed=0) @ moved).numpy()
    check(-np.array(scored.with_format(None)["influence"]).sum(0), asked)


def test_a_users_loss_has_the_weights_of_the_trainers_rule(tmp_path: Path):
    torch.manual_seed(0)
    loss = lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none")  # noqa: E731
    check(*moves(toys.vit(), toys.images(24), tmp_path, accumulation=3, loss=loss))


def test_a_forward_that_was_patched_onto_the_model_is_not_scored(tmp_path: Path):
    torch.manual_seed(0)
    model = toys.bert()
    original = model.forward

    @functools.wraps(original)
    def patched(**inputs: Any) -> Any:
        return original(**inputs)  # closes over the caller's model, as trl's and accelerate's do

    model.forward = patched
    check(*moves(model, toys.tokens(24), tmp_path))


def test_a_batch_norm_model_is_scored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model = toys.Mlp()
    model.net.insert(1, nn.BatchNorm1d(16))
    with caplog.at_level("WARNING"):
        moves(model, toys.vectors(24, noise=5.0), tmp_path)
    assert "computed again, has norm" in caplog.text


def test_ragged_rows_of_a_run_without_tokenizer_ask_for_the_collator(tmp_path: Path):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="pass the data_collator that training used"):
        moves(toys.bert(), ragged(), tmp_path, trainer={"data_collator": DataCollatorWithPadding(tokenizer())})


def test_output_questions_do_not_depend_on_padding_or_batch_size(tmp_path: Path):
    torch.manual_seed(0)
    model, rows, collator = tagger(), ragged(label="tokens"), DataCollatorForTokenClassification(tokenizer())
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0)
    args = toys.arguments(tmp_path / "out", max_steps=3)
    Trainer(model, args, train_dataset=rows, data_collator=collator, callbacks=[recorder]).train()
    found = []
    for size in (3, 24):
        scored = add_influence(
            rows,
            tmp_path / "t",
            model=model,
            eval_dataset=rows,
            directions=8,
            data_collator=collator,
            batch_size=size,
            column=f"of_{size}",
        )
        found.append(np.array(scored[f"of_{size}"]))
    assert np.allclose(found[0], found[1], rtol=1e-3, atol=1e-6 * np.abs(found[0]).max())
