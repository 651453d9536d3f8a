"""Rows that augmentation or masking changes whenever they are fetched: noticed, and averaged over draws."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call, grad, vmap
from transformers import Trainer, set_seed

from hf_prune import Trajectory, TrajectoryCallback, add_influence
from hf_prune._core.scoring import require_scoring
from hf_prune.influence.queries import output_signs
from tests import toys

RATE, DIRECTIONS, SIDE, CROP = 0.1, 32, 10, 8


def bars(rows: int, seed: int) -> Dataset:
    """Images of 10 x 10 with a bright bar whose place is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, toys.CLASSES, rows)
    x = rng.normal(0, 0.3, size=(rows, SIDE, SIDE)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[2:8, 2 * label + 2 : 2 * label + 4] += 1.0
    return Dataset.from_dict({"x": x.tolist(), "labels": y.tolist()})


class Crop:
    """A view of 8 x 8: in the middle, or at a random place; with a seed, by a generator of its own."""

    def __init__(self, chance: bool = True, seed: int | None = None):
        self.chance, self.own = chance, None if seed is None else np.random.default_rng(seed)

    def __call__(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        crops = [self.crop(image) for image in np.array(columns["x"], dtype="float32")]
        return {"x": torch.tensor(np.stack(crops)), "labels": torch.tensor(columns["labels"])}

    def crop(self, image: np.ndarray) -> np.ndarray:
        if not self.chance:
            top, left = 1, 1
        elif self.own is not None:
            top, left = self.own.integers(0, SIDE - CROP + 1, 2)
        else:
            top, left = np.random.randint(0, SIDE - CROP + 1, 2)
        return image[top : top + CROP, left : left + CROP].reshape(-1)


RAW, DEV = bars(64, seed=0), bars(32, seed=5).with_transform(Crop(chance=False))


@dataclass
class Run:
    model: nn.Module
    path: Path

    def score(self, rows: Dataset, **settings: Any) -> np.ndarray:
        """Scored anew, `(n, k)`."""
        shutil.rmtree(self.path / "scores", ignore_errors=True)
        asked = {"model": self.model, "eval_dataset": DEV, "directions": DIRECTIONS, "mode": "visits"} | settings
        return add_influence(rows, self.path, **asked).with_format("numpy")["influence"][:]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("augmented")
    set_seed(0)
    model = toys.Mlp(features=CROP**2)
    args = toys.arguments(
        place / "out",
        num_train_epochs=10,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        remove_unused_columns=False,
    )
    rows = RAW.with_transform(Crop(seed=1))
    Trainer(model, args, train_dataset=rows, callbacks=[TrajectoryCallback(place / "t")]).train()
    return Run(model, place / "t")


@pytest.fixture(scope="module")
def truth(run: Run) -> np.ndarray:
    """
    The window retrained in plain torch without each row's loss, `(n, k)`: the mean over 60 draws of the augmentation.
    """
    record, names = Trajectory.open(run.path), dict(run.model.named_parameters())
    sizes, shapes = [p.numel() for p in names.values()], [p.shape for p in names.values()]

    def logits(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        values = {n: part.view(s) for n, part, s in zip(names, theta.split(sizes), shapes, strict=True)}
        return functional_call(run.model, values, (x,))["logits"]

    def loss(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (nn.functional.cross_entropy(logits(theta, x), y, reduction="none") * weights).mean()

    slopes, n = vmap(grad(loss), in_dims=(0, None, None, 0)), len(RAW)
    x, y = np.array(RAW["x"], dtype="float32"), torch.tensor(RAW["labels"])
    held_out, total = DEV[:]["x"], torch.zeros(n, len(DEV), toys.CLASSES)
    for draw in range(60):
        view = Crop(seed=1000 + draw)
        thetas = record.parameters_at(record.window[0]).repeat(n + 1, 1)  # the last one keeps all rows
        for t in range(*record.window):
            ids = torch.from_numpy(record.step(t).ids)
            batch = torch.tensor(np.stack([view.crop(x[i]) for i in ids]))
            kept = (torch.arange(n + 1)[:, None] != ids).float()
            thetas = thetas - RATE * slopes(thetas, batch, y[ids], kept)
        ends = vmap(logits, in_dims=(0, None))(thetas, held_out).detach()
        total += (ends[:-1] - ends[-1]) / 60
    signs = output_signs(range(len(DEV)), DIRECTIONS, (toys.CLASSES,), seed=0).float().flatten(1)
    return (total.flatten(1) @ signs.T / (DIRECTIONS * len(DEV)) ** 0.5).numpy()


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])


def ranks(left: np.ndarray, right: np.ndarray) -> float:
    return float(spearmanr(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))[0])


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_a_mean_over_draws_is_nearer_to_the_truth_than_one_draw_and_than_rows_without_chance(
    engine: str, run: Run, truth: np.ndarray
) -> None:
    one = run.score(RAW.with_transform(Crop()), engine=engine)
    plain = run.score(RAW.with_transform(Crop(chance=False)), engine=engine)
    many = run.score(RAW.with_transform(Crop()), engine=engine, draws=8)
    assert correlation(one, truth) < 0.8
    assert correlation(plain, truth) < 0.85
    assert correlation(many, truth) > 0.9


def test_rows_draw_anew_in_each_segment_of_the_window(run: Run, truth: np.ndarray) -> None:
    """With one draw a row for all segments the correlation is .82."""
    assert correlation(run.score(RAW.with_transform(Crop()), mode="expected", draws=4), truth) > 0.87


@pytest.mark.parametrize("mode", ["expected", "visits"])
def test_other_draws_rank_rows_alike_once_they_are_averaged(mode: str, run: Run) -> None:
    single = [run.score(RAW.with_transform(Crop(seed=seed)), mode=mode) for seed in (11, 12)]
    means = [run.score(RAW.with_transform(Crop(seed=seed)), mode=mode, draws=8) for seed in (13, 14)]
    assert ranks(*single) < 0.65
    assert ranks(*means) > ranks(*single) + 0.1


def test_a_scoring_that_is_repeated_draws_the_same(run: Run) -> None:
    rows = RAW.with_transform(Crop())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    left = run.score(rows, draws=2)
    before = np.random.random()
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    np.testing.assert_array_equal(left, run.score(rows, draws=2))
    assert np.random.random() != before
    assert not np.array_equal(left, run.score(rows))


def test_random_rows_are_warned_of_with_advice_that_can_be_followed(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:

    def warned(rows: Dataset, **settings: Any) -> bool:
        caplog.clear()
        with caplog.at_level("WARNING", logger="hf_prune"):
            run.score(rows, curvature="none", **settings)
        return "pass draws=8" in caplog.text

    def shaken(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        x = torch.stack([row["x"] for row in rows])
        return {"x": x + torch.randn(x.shape), "labels": torch.stack([row["labels"] for row in rows])}

    middle = RAW.with_transform(Crop(chance=False))

    assert warned(RAW.with_transform(Crop()))
    assert warned(middle, data_collator=shaken)
    assert warned(middle, eval_dataset=bars(32, seed=5).with_transform(Crop()))
    assert not warned(RAW.with_transform(Crop()), draws=2)
    assert not warned(middle)


def test_rows_without_chance_are_scored_once(run: Run) -> None:
    middle = RAW.with_transform(Crop(chance=False))
    scored = add_influence(middle, run.path, model=run.model, eval_dataset=DEV, directions=4, draws=8)
    assert require_scoring(scored).config.draws == 1
    scored = add_influence(
        RAW.with_transform(Crop()), run.path, model=run.model, eval_dataset=DEV, directions=4, draws=2
    )
    assert require_scoring(scored).config.draws == 2
    with pytest.raises(ValueError, match="draws must be a whole number"):
        add_influence(middle, run.path, model=run.model, directions=4, draws=0)
