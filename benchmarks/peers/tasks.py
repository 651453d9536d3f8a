"""What is trained: data, model and recipe of each task. A further model is one more function in `TASKS`."""

from __future__ import annotations

import copy
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import digits, movie_reviews
from common import minilm as pretrained_minilm
from datasets import Dataset, Features, List, Value
from PIL import Image
from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_prune._core.compat import masks_for_vmap

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10.parquet"
# Rows that the ViT was trained on before; no task trains or tests on them.
PRETRAINING = 10_000


@dataclass(frozen=True)
class Task:
    """
    A task whose rows are input tensors of one shape and a class label.

    Attributes:
        inputs (`tuple[str, ...]`): the names of the model's inputs; of several (token ids and their mask), all alike.
        model (`Callable`): makes a fresh model; its weights follow the global seed.
        settings (`dict`): arguments for `TrainingArguments`: optimizer, learning rate, epochs, batch size.
    """

    name: str
    train: Dataset
    test: Dataset
    inputs: tuple[str, ...]
    model: Callable[[], nn.Module]
    settings: dict[str, Any]

    @cached_property
    def train_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of the training rows; several inputs lie side by side, `(n, inputs, ...)`."""
        return self._tensors(self.train)

    @cached_property
    def test_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of the test rows."""
        return self._tensors(self.test)

    def logits_model(self, model: nn.Module) -> Logits:
        """A copy of a model of this task as `x -> logits`, in eval mode and with attention that `vmap` can take."""
        model = copy.deepcopy(model).eval()
        if isinstance(model, PreTrainedModel):
            model.set_attn_implementation("eager")
        return Logits(model, self.inputs)

    def _tensors(self, rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
        columns = rows.with_format("numpy")[:]
        parts = [torch.from_numpy(np.stack(columns[name])) for name in self.inputs]
        return parts[0] if len(parts) == 1 else torch.stack(parts, 1), torch.from_numpy(np.asarray(columns["labels"]))


class Mlp(nn.Module):
    """64 pixels, 32 hidden units, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Logits(nn.Module):
    """Any of the models as `x -> logits`, which is what the libraries take."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (x,) if len(self.names) == 1 else x.unbind(1)
        with masks_for_vmap():
            return self.model(**dict(zip(self.names, parts, strict=True)))["logits"]


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`z_y - logsumexp(other logits)`, `(B,)`: the model output of TRAK (arXiv 2303.14186, section 3.3)."""
    right = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    return (logits * right).sum(-1) - logits.masked_fill(right, -torch.inf).logsumexp(-1)


def mlp(rows: int, tests: int, optimizer: str) -> Task:
    """The digits of scikit-learn through an MLP, with the recipes of `fidelity.py`."""
    train, _, test = digits()
    recipes: dict[str, dict[str, Any]] = {
        "adamw": {"learning_rate": 2e-3, "warmup_steps": 0.1},
        "sgd": {"optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0},
    }
    settings = {"num_train_epochs": 10, "per_device_train_batch_size": 32} | recipes[optimizer]
    name = f"mlp/{optimizer}"
    parts = (part.select(range(size)).remove_columns("row") for part, size in ((train, rows), (test, tests)))
    return Task(name, *parts, ("x",), Mlp, settings)


def vit(rows: int, tests: int, file: Path = CIFAR) -> Task:
    """
    A small ViT fine-tuned on CIFAR-10 at 16 x 16 pixels, with AdamW and clipping as the Trainer has them.

    It was trained before on other rows, and starts with a fresh head.
    """
    weights = _pretrained(file)

    def model() -> nn.Module:
        fresh = _vit()
        fresh.vit.load_state_dict(weights)
        return fresh

    settings = {
        "num_train_epochs": 5,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-4,
        "warmup_steps": 0.1,
    }
    train, test = _cifar(file, "train", PRETRAINING, rows), _cifar(file, "test", 0, tests)
    return Task("vit/adamw", train, test, ("pixel_values",), model, settings)


def vit_from_scratch(rows: int, tests: int, file: Path = CIFAR) -> Task:
    """The same ViT from scratch at a high learning rate: a run in which small changes grow."""
    train, test = _cifar(file, "train", 0, rows), _cifar(file, "test", 0, tests)
    settings = {
        "num_train_epochs": 10,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "warmup_steps": 0.1,
    }
    return Task("vit from scratch/adamw", train, test, ("pixel_values",), _vit, settings)


def minilm(rows: int, tests: int, dropout: float = 0.0, seed: int = 0) -> Task:
    """MiniLM fine-tuned on movie reviews of 32 tokens, cut or padded, with AdamW and clipping as the Trainer's."""
    tokenizer = pretrained_minilm()[1]

    def tokens(row: dict[str, Any]) -> dict[str, Any]:
        found = tokenizer(row["text"], truncation=True, padding="max_length", max_length=32)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    reviews = movie_reviews(rows + tests, seed).map(tokens, remove_columns="text")
    settings = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-5,
        "warmup_steps": 0.1,
    }
    parts = reviews.select(range(rows)), reviews.select(range(rows, rows + tests))
    name = "minilm/adamw" + (f", dropout {dropout}" if dropout else "")
    return Task(name, *parts, ("input_ids", "attention_mask"), lambda: pretrained_minilm(dropout)[0], settings)


def _vit() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        num_channels=3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


def _pretrained(cifar: Path) -> dict[str, torch.Tensor]:
    """Weights of the ViT's body after training on other rows; kept between processes, for it takes half a minute."""
    file = Path(tempfile.gettempdir()) / f"hf_prune-vit-{PRETRAINING}-torch-{torch.__version__}.pt"
    if not file.exists():
        rows = _cifar(cifar, "train", 0, PRETRAINING)
        set_seed(7)
        model = _vit()
        with tempfile.TemporaryDirectory() as directory:
            options = TrainingArguments(
                directory,
                num_train_epochs=5,
                per_device_train_batch_size=64,
                learning_rate=1e-3,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            )
            Trainer(model, options, train_dataset=rows).train()
        partial = file.with_suffix(f".{os.getpid()}")
        torch.save(model.vit.state_dict(), partial)
        partial.replace(file)
    return torch.load(file, weights_only=True)


def _cifar(file: Path, split: str, first: int, rows: int, seed: int = 0) -> Dataset:
    """Rows of a split in a random order from `first` on, at half the resolution and scaled to [-1, 1]."""
    if not file.exists():
        raise FileNotFoundError(f"There is no {file}: put CIFAR-10 (columns image.bytes, label, split) there.")
    table = Dataset.from_parquet(str(file)).to_pandas()
    table = table[table["split"] == split]
    chosen = table.iloc[np.random.default_rng(seed).permutation(len(table))[first : first + rows]]
    line = List(Value("float32"), length=16)
    features = Features({"pixel_values": List(List(line, length=16), length=3), "labels": Value("int64")})
    pixels = np.stack([_pixels(cell["bytes"]) for cell in chosen["image"]])
    return Dataset.from_dict({"pixel_values": pixels, "labels": chosen["label"].to_numpy()}, features=features)


def _pixels(jpeg: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(image, dtype="float32").transpose(2, 0, 1) / 127.5 - 1
