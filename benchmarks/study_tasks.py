"""The classification tasks of the studies of selection, and their splits."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import movie_reviews
from datasets import ClassLabel, Dataset, Features, List, Value
from torch import nn

TEST = 2026
"""Draws the test rows: the same for every seed of a task, and no others' seeds ever deal them out."""


@dataclass(frozen=True)
class Arrays:
    """Inputs, float32 of shape `(n, features)`, and classes, int64 of shape `(n,)`."""

    x: np.ndarray
    y: np.ndarray

    def take(self, rows: Any) -> Arrays:
        return Arrays(self.x[rows], self.y[rows])

    def dataset(self) -> Dataset:
        width, classes = self.x.shape[1], int(self.y.max()) + 1
        kinds = Features({"x": List(Value("float32"), length=width), "labels": ClassLabel(num_classes=classes)})
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(self.x.ravel()), width),
            "labels": pa.array(self.y),
        }
        return Dataset(pa.table(columns).cast(kinds.arrow_schema))


@dataclass(frozen=True)
class Task:
    """
    A classification task.

    Args:
        name (`str`): Of the data set.
        train (`Arrays`): Rows to prune.
        held_out (`Arrays`): Rows that influence is asked on.
        dev (`Arrays`): Rows that choices may be made on.
        test (`Arrays`): Rows that nothing is chosen on.
        net (`Callable`): Makes a fresh network from inputs to logits.
        epochs (`int`), lr (`float`), batch (`int`): How it is trained, with AdamW, 10 % warm-up and linear decay.
    """

    name: str
    train: Arrays
    held_out: Arrays
    dev: Arrays
    test: Arrays
    net: Callable[[], nn.Module]
    epochs: int
    lr: float
    batch: int


def mlp(*widths: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(channels: int = 3, side: int = 16, width: int = 16) -> nn.Module:
    """Three convolutions with group normalisation; 24 k parameters for 16 x 16 x 3 pixels."""

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        nn.Unflatten(1, (channels, side, side)),
        *block(channels, width),
        *block(width, 2 * width),
        *block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def split(pool: Arrays, sizes: Sequence[int], seed: int) -> list[Arrays]:
    order = np.random.default_rng(seed).permutation(len(pool.y))
    return [pool.take(part) for part in np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])]


def digits_task(seed: int = 0) -> Task:
    """scikit-learn's digits: 1,097 rows, 200 held out, 150 of dev, 350 of test; an MLP with 64 hidden units."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rest, test = split(Arrays((x / 16).astype("float32"), y.astype("int64")), [1447, 350], TEST)
    train, held_out, dev = split(rest, [1097, 200, 150], seed)
    return Task("digits", train, held_out, dev, test, lambda: mlp(64, 64, 10), 20, 3e-3, 32)


def mnist_task(directory: Path, rows: int = 8_000, seed: int = 0) -> Task:
    """MNIST's training file, uncompressed idx; an MLP with 32 hidden units. The official test rows are not touched."""
    x = np.fromfile(directory / "train-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 784)
    y = np.fromfile(directory / "train-labels-idx1-ubyte", np.uint8)[8:].astype("int64")
    order = np.random.default_rng(TEST).permutation(len(y))

    def read(part: np.ndarray) -> Arrays:
        return Arrays((x[part] / 255).astype("float32"), y[part])

    pool = np.random.default_rng(seed).permutation(order[6_000:])
    train, held_out, dev = (read(part) for part in np.split(pool[: rows + 4_000], [rows, rows + 1_000]))
    return Task("mnist", train, held_out, dev, read(order[:6_000]), lambda: mlp(784, 32, 10), 10, 1e-3, 32)


def cifar_task(file: Path, rows: int = 5_000, seed: int = 0) -> Task:
    """CIFAR-10 (recompressed as JPEG) averaged to 16 x 16 pixels; a small CNN, far from saturated."""
    from PIL import Image

    table = pq.read_table(file)
    parts = np.array(table["split"].to_pylist())
    labels = table["label"].to_numpy().astype("int64")
    images = table["image"].combine_chunks().field("bytes")

    def read(chosen: np.ndarray) -> Arrays:
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(images[int(i)].as_py()))) for i in chosen])
        small = pixels.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(len(chosen), -1)
        return Arrays(((small - 120) / 64).astype("float32"), labels[chosen])

    pool = np.random.default_rng(seed).permutation(np.flatnonzero(parts == "train"))[: rows + 3_000]
    train, held_out, dev = split(read(pool), [rows, 1_000, 2_000], seed)
    test = read(np.flatnonzero(parts == "test")[-5_000:])
    return Task("cifar10", train, held_out, dev, test, cnn, 12, 3e-3, 64)


_reviews: dict[int, Arrays] = {}


def reviews_task(seed: int = 0, rows: int = 2_000) -> Task:
    """
    Rotten Tomatoes sentences as mean outputs of a frozen MiniLM; an MLP with 16 hidden units on them.

    The encoder is not trained: what two cores can carry, and a smaller question than fine-tuning it all.
    """
    from gap_tasks import features

    if not _reviews:  # the encoder's outputs are the same for every seed
        texts = movie_reviews(7_000, TEST)
        _reviews[0] = Arrays(features(texts["text"]), np.array(texts["labels"]))
    rest, test = (_reviews[0].take(slice(*ends)) for ends in ((0, 4_500), (4_500, None)))
    train, held_out, dev = split(rest, [rows, 600, 1_500], seed)
    mean, scale = train.x.mean(0), train.x.std(0) + 1e-6
    scaled = [Arrays((part.x - mean) / scale, part.y) for part in (train, held_out, dev, test)]
    return Task("reviews", *scaled, lambda: mlp(384, 16, 2), 8, 1e-3, 32)
