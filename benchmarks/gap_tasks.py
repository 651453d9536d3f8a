"""What `gap.py` trains on: digits, movie reviews, and MNIST as data that no formula was chosen on; splits of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import digits, minilm, movie_reviews
from datasets import Dataset
from datasets.utils import tqdm

ROWS, HELD_OUT = 2000, 600
"""Of reviews and MNIST."""


@dataclass(frozen=True)
class Task:
    """Rows for training and held-out ones, the sizes of the MLP, and how long and fast it is trained."""

    train: Dataset
    held_out: Dataset
    sizes: tuple[int, int, int]
    epochs: int
    learning_rate: float

    def tensors(self, rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(np.array(rows["x"], dtype="float32")), torch.tensor(rows["labels"])


def task(name: str, split: int, share: float, mnist: Path | None) -> Task:
    """A data set; `split` draws its rows, and `share` is that of the epochs of a full run."""
    if name == "digits":
        train, held_out, _ = (part.remove_columns("row") for part in digits(split))
        return Task(train, held_out, (64, 32, 10), round(30 * share), 2e-3)
    if name == "mnist":
        assert mnist is not None
        x, y = pixels(mnist, split)
        return Task(*_parts(x, y), (784, 32, 10), round(15 * share), 2e-3)
    rows = movie_reviews(ROWS + HELD_OUT, split)
    x, y = features(rows["text"]), np.array(rows["labels"])
    x = (x - x[:ROWS].mean(0)) / (x[:ROWS].std(0) + 1e-6)
    return Task(*_parts(x, y), (x.shape[1], 16, 2), round(8 * share), 1e-3)


def pixels(directory: Path, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of MNIST's training file, `(n, 784)` in [0, 1], and their classes."""
    x = np.fromfile(directory / "train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)
    y = np.fromfile(directory / "train-labels-idx1-ubyte", np.uint8)[8:]
    chosen = np.random.default_rng(split).permutation(len(x))[: ROWS + HELD_OUT]
    return (x[chosen] / 255).astype("float32"), y[chosen].astype("int64")


def features(texts: list[str]) -> np.ndarray:
    """Mean last hidden states of MiniLM, `(n, 384)`."""
    model, tokenizer = minilm()
    encoder = model.base_model.eval()
    found = np.zeros((len(texts), model.config.hidden_size), dtype="float32")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in tqdm(range(0, len(texts), 32), desc="Reading reviews"):
        part = order[start : start + 32]
        batch = tokenizer([texts[i] for i in part], truncation=True, max_length=64, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden, mask = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
        found[part] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return found


def _parts(x: np.ndarray, y: np.ndarray) -> tuple[Dataset, Dataset]:
    """The first rows for training, the others held out."""
    train, held_out = (
        Dataset.from_dict({"x": x[part], "labels": y[part]}) for part in (slice(ROWS), slice(ROWS, None))
    )
    return train, held_out
