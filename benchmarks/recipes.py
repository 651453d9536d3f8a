"""The recipes of the study of choices: data sets, and how a network is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from study_data import load
from study_tasks import TEST, Arrays, Task, cifar_task, digits_task, mlp, reviews_task, split

Recipe = Callable[[int], Task]


@lru_cache(maxsize=2)
def _pool(directory: Path, name: str) -> Arrays:
    return load(directory, name)


def of_pool(
    directory: Path,
    data: str,
    name: str,
    sizes: tuple[int, int, int, int],
    widths: tuple[int, ...],
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
) -> Task:
    """A task of train, held-out, dev and test rows in these sizes; the test rows are the same for every seed."""
    pool = _pool(directory, data)
    classes = int(pool.y.max()) + 1
    rest, test = split(pool, [len(pool.y) - sizes[3], sizes[3]], TEST)
    train, held_out, dev = split(rest, sizes[:3], seed)
    net = partial(mlp, pool.x.shape[1], *widths, classes)
    if pool.x.shape[1] == 384:  # sentence embeddings
        mean, scale = train.x.mean(0), train.x.std(0) + 1e-6
        train, held_out, dev, test = (Arrays((p.x - mean) / scale, p.y) for p in (train, held_out, dev, test))
    return Task(name, train, held_out, dev, test, net, epochs, lr, batch)


def trained(task: Task, name: str, epochs: int) -> Task:
    """The same task trained for other epochs."""
    return replace(task, name=name, epochs=epochs)


def noisy(task: Task, name: str, share: float, seed: int) -> Task:
    """The same task where a share of the training labels is drawn at random."""
    rng = np.random.default_rng([seed, 5])
    y = task.train.y.copy()
    wrong = rng.permutation(len(y))[: round(share * len(y))]
    y[wrong] = rng.integers(0, int(y.max()) + 1, len(wrong))
    return replace(task, name=name, train=Arrays(task.train.x, y))


def imbalanced(task: Task, name: str, ratio: float, seed: int) -> Task:
    """The same task where classes thin out geometrically: all training rows of the first, a `ratio` of the last."""
    classes = int(task.train.y.max()) + 1
    share = ratio ** (np.arange(classes) / (classes - 1))
    kept = np.random.default_rng([seed, 6]).random(len(task.train.y)) < share[task.train.y]
    return replace(task, name=name, train=task.train.take(np.flatnonzero(kept)))


def recipes(directory: Path, cifar: Path | None) -> dict[str, tuple[str, Recipe]]:
    """Each recipe's data set, and the recipe as a function of the seed."""
    pool = partial(of_pool, directory)

    def of(data: str, name: str, *rest: object) -> tuple[str, Recipe]:
        return data, lambda seed: pool(data, name, *rest, seed)  # type: ignore[arg-type]

    mnist = ("mnist", (4_000, 1_000, 2_000, 6_000), (32,), 10, 1e-3, 32)
    found: dict[str, tuple[str, Recipe]] = {
        "digits": ("digits", digits_task),
        "digits-short": ("digits", lambda seed: trained(digits_task(seed), "digits-short", 4)),
        "digits-noise": ("digits", lambda seed: noisy(digits_task(seed), "digits-noise", 0.2, seed)),
        "mnist": of(mnist[0], "mnist", *mnist[1:]),
        "mnist-long": (
            "mnist",
            lambda seed: trained(pool(*mnist[:1], "mnist-long", *mnist[1:], seed), "mnist-long", 40),
        ),
        "mnist-imbalanced": (
            "mnist",
            lambda seed: imbalanced(pool(*mnist[:1], "m", *mnist[1:], seed), "mnist-imbalanced", 0.05, seed),
        ),
        "reviews": ("reviews", reviews_task),
        "reviews-long": ("reviews", lambda seed: trained(reviews_task(seed), "reviews-long", 40)),
        "tweets": of("tweets", "tweets", (3_000, 600, 1_500, 3_000), (32,), 8, 1e-3, 32),
        "sentences": of("sentences", "sentences", (3_000, 600, 1_500, 3_000), (32,), 8, 1e-3, 32),
        "genres": of("genres", "genres", (4_000, 600, 1_500, 2_800), (64,), 10, 1e-3, 32),
        "documents": of("documents", "documents", (2_800, 500, 500, 1_000), (64,), 30, 1e-3, 32),
        "segment": of("segment", "segment", (1_200, 200, 300, 600), (32,), 40, 3e-3, 32),
        "phishing": of("phishing", "phishing", (600, 150, 150, 350), (16,), 30, 3e-3, 32),
        "banana": of("banana", "banana", (2_000, 400, 600, 2_000), (32, 32), 20, 3e-3, 32),
        "fashion": of("fashion", "fashion", (4_000, 1_000, 2_000, 10_000), (32,), 10, 1e-3, 32),
        "fashion-long": of("fashion", "fashion-long", (4_000, 1_000, 2_000, 10_000), (32,), 40, 1e-3, 32),
        "diamonds": of("diamonds", "diamonds", (4_000, 600, 1_500, 6_000), (32,), 15, 3e-3, 32),
    }
    if cifar is not None:
        found["cifar10"] = ("cifar10", lambda seed: cifar_task(cifar, seed=seed))
    return found
