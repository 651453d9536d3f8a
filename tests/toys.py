"""Small real tasks that serve all tests: data, models and a Trainer run on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

CLASSES = 3
VOCABULARY = 32


class Mlp(nn.Module):
    """A plain module that returns `loss` and `logits`; its head ignores `num_items_in_batch` (it does not take it)."""

    def __init__(self, features: int = 8, hidden: int = 16, classes: int = CLASSES):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Cubed(Mlp):
    """Its logits are no linear layer's outputs."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x) ** 3
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class MlpSum(Mlp):
    """The same head, normalised by the Trainer's `num_items_in_batch` as Llama and ViT do."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        if num_items_in_batch is None:
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
        return {"loss": loss, "logits": logits}


class MlpKwargs(Mlp):
    """Takes `**kwargs`, so the Trainer passes `num_items_in_batch`, but ignores it: as BERT's heads do."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        return super().forward(x, labels)


def vectors(rows: int = 64, features: int = 8, classes: int = CLASSES, seed: int = 0, noise: float = 1.0) -> Dataset:
    """Gaussian classes; `x[0]` of a row is not its id (see `ids_in_inputs` of the recording tests for that)."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(12345).normal(size=(classes, features))
    y = rng.integers(0, classes, rows)
    x = (centres[y] + noise * rng.normal(size=(rows, features))).astype("float32")
    kinds = Features({"x": List(Value("float32"), length=features), "labels": ClassLabel(num_classes=classes)})
    return Dataset.from_dict({"x": x.tolist(), "labels": y.tolist()}, features=kinds)


def tokens(rows: int = 48, length: int = 10, classes: int = CLASSES, seed: int = 0, padding: bool = True) -> Dataset:
    """Token sequences whose class shows in their vocabulary, of unequal length where `padding`."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    ids, masks = [], []
    for label in y:
        n = int(rng.integers(length // 2, length + 1)) if padding else length
        words = rng.integers(2, VOCABULARY, length)
        words[: n // 2] = 2 + label * 8 + rng.integers(0, 8, n // 2)
        words[n:] = 0
        ids.append(words.tolist())
        masks.append([1] * n + [0] * (length - n))
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": y.tolist()})


def images(rows: int = 48, size: int = 8, classes: int = CLASSES, seed: int = 0) -> Dataset:
    """One-channel images with a bright bar whose place is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    x = rng.normal(0, 0.5, size=(rows, 1, size, size)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[0, 2 * label : 2 * label + 2] += 1.0
    return Dataset.from_dict({"pixel_values": x.tolist(), "labels": y.tolist()})


def bert(**kwargs: Any) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **kwargs,
    )
    return BertForSequenceClassification(config)


def gpt2() -> GPT2ForSequenceClassification:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        num_labels=CLASSES,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2ForSequenceClassification(config)


def llama() -> LlamaForSequenceClassification:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        num_labels=CLASSES,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config)


def vit() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


def arguments(output_dir: str | Path, **overrides: Any) -> TrainingArguments:
    """TrainingArguments of a short, silent run on the CPU."""
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": [],
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    return TrainingArguments(**(settings | overrides))


def train(
    model: nn.Module,
    dataset: Any,
    output_dir: str | Path,
    callbacks: list[Any] | None = None,
    *,
    resume: str | bool | None = None,
    eval_dataset: Any = None,
    **overrides: Any,
) -> Trainer:
    """Runs the real Trainer and returns it."""
    set_seed(0)
    args = arguments(output_dir, **overrides)
    trainer = Trainer(model, args, train_dataset=dataset, eval_dataset=eval_dataset, callbacks=callbacks or [])
    trainer.train(resume_from_checkpoint=resume)
    return trainer
