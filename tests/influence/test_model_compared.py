"""The model that is handed over is compared with the record: what is scored is that model, or somebody is told."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, set_seed

from hf_prune import Trajectory, TrajectoryCallback, TrajectoryError, add_influence, add_scores, diagnose
from hf_prune._core.scoring import require_scoring
from tests import toys

DEV = toys.vectors(32, seed=1, noise=2.0)
ROWS = toys.vectors(64, noise=2.0)


def trained(place: Path, model: torch.nn.Module, epochs: int, record: dict | None = None, **overrides) -> Trainer:
    settings = {"num_train_epochs": epochs, "learning_rate": 0.03, "lr_scheduler_type": "constant"} | overrides
    recorder = TrajectoryCallback(place / "t", row_statistics=True, **(record or {}))
    args = toys.arguments(place / "out", **settings)
    set_seed(0)
    trainer = Trainer(model, args, train_dataset=ROWS, eval_dataset=DEV, callbacks=[recorder])
    trainer.train()
    return trainer


def made(hidden: int = 16) -> toys.Mlp:
    set_seed(0)
    return toys.Mlp(hidden=hidden)


BEST = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run that loads its best model at the end, which is not its last."""
    place = tmp_path_factory.mktemp("best")
    trainer = trained(place, made(), 12, {"snapshots_per_epoch": 2}, **BEST)
    assert trainer.state.best_global_step < trainer.state.global_step == 96
    return trainer, place / "t"


def score(trainer: Trainer, record: Path | Trajectory, **settings) -> np.ndarray:
    arguments = {"model": trainer.model, "eval_dataset": DEV, "directions": 8} | settings
    scored = add_influence(ROWS, record, **arguments)
    return np.column_stack([np.array(scored["influence"]), scored["influence_eval_loss"]])


def test_the_model_that_is_handed_over_is_scored(best: tuple[Trainer, Path], caplog: pytest.LogCaptureFixture) -> None:
    trainer, record = best
    step = trainer.state.best_global_step
    with caplog.at_level("WARNING", logger="hf_prune"):
        found = score(trainer, record, seed=3)
    assert f"The model is that of step {step} of 96" in caplog.text
    np.testing.assert_array_equal(found, score(trainer, record, seed=3, until=step))
    last = copy.deepcopy(trainer.model)
    theta = Trajectory.open(record).parameters_at(96)
    torch.nn.utils.vector_to_parameters(theta, last.parameters())
    caplog.clear()
    np.testing.assert_array_equal(score(trainer, record, model=last, seed=3), score(trainer, record, seed=3, until=96))
    assert "The model is that of" not in caplog.text


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("mode", ["expected", "visits"])
def test_until_scores_the_run_as_if_it_had_ended_there(
    engine: str, mode: str, best: tuple[Trainer, Path], tmp_path: Path
) -> None:
    trainer, record = best
    step = trainer.state.best_global_step
    short = trained(tmp_path, made(), step // 8, {"snapshots_per_epoch": 2})
    assert Trajectory.open(record).until(step).snapshot_steps == Trajectory.open(tmp_path / "t").snapshot_steps
    left = score(trainer, record, engine=engine, mode=mode, until=step)
    right = score(short, tmp_path / "t", engine=engine, mode=mode)
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-8)
    last = score(trainer, record, engine=engine, mode=mode, until=96)
    assert np.linalg.norm(last - left) > 0.1 * np.linalg.norm(left)


def test_until_is_in_the_record_of_the_scoring(best: tuple[Trainer, Path]) -> None:
    trainer, record = best
    step = trainer.state.best_global_step
    scored = add_influence(ROWS, record, model=trainer.model, eval_dataset=DEV, directions=8, until=step)
    found = require_scoring(scored)
    assert found.config.until == step
    first = Trajectory.open(record).until(step).window[0]
    assert found.recorded_share == pytest.approx((step - first) / step)


def test_scores_and_diagnosis_take_until_too(best: tuple[Trainer, Path]) -> None:
    trainer, record = best
    step = trainer.state.best_global_step
    part = add_scores(ROWS, record, model=trainer.model, last_layer=True, until=step)
    whole = add_scores(ROWS, record, model=trainer.model, last_layer=True)
    last = add_scores(ROWS, record, model=trainer.model, last_layer=True, until=96)
    assert part["forgetting"] != whole["forgetting"] == last["forgetting"]
    assert part["last_layer_influence"] == whole["last_layer_influence"] != last["last_layer_influence"]
    found = diagnose(ROWS, record, model=trainer.model, eval_dataset=DEV, groups=(0.2, 0.2))
    assert found.steps == Trajectory.open(record).until(step).window
    assert found.correlation > 0.9


def test_a_step_without_a_snapshot_is_refused_with_those_that_there_are(best: tuple[Trainer, Path]) -> None:
    trainer, record = best
    ends = Trajectory.open(record).ends
    with pytest.raises(ValueError, match=", ".join(map(str, ends))):
        score(trainer, record, until=ends[0] + 1)
    with pytest.raises(ValueError, match="until must be the number of a step"):
        score(trainer, record, until=0)
    with pytest.raises(ValueError, match="a window of this record can end at"):
        diagnose(ROWS, record, model=trainer.model, eval_dataset=DEV, until=ends[0] + 1)


def test_a_model_that_was_trained_otherwise_is_warned_of(
    best: tuple[Trainer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    trainer, record = best
    other = copy.deepcopy(trainer.model)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    with caplog.at_level("WARNING", logger="hf_prune"):
        score(trainer, record, model=other)
    assert "no step that can be scored" in caplog.text


@pytest.mark.parametrize(
    ("kind", "snapshot"),
    [
        (torch.float32, "float32"),
        (torch.bfloat16, "float32"),
        (torch.float16, "float32"),
        (torch.float32, "bfloat16"),
        (torch.bfloat16, "bfloat16"),
    ],
)
def test_the_model_itself_passes_whatever_it_or_the_snapshots_are_rounded_to(
    kind: torch.dtype, snapshot: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(tmp_path, made(), 2, {"snapshot_dtype": snapshot})
    with caplog.at_level("WARNING", logger="hf_prune"):
        score(trainer, tmp_path / "t", model=copy.deepcopy(trainer.model).to(kind))
    assert "The model is that of" not in caplog.text


class Frozen(toys.Mlp):
    """Only its head is trained, as with an adapter."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        super().__init__(hidden=32)
        self.net[0].requires_grad_(False)


def test_an_adapter_on_another_base_is_refused(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Frozen(), 2)
    score(trainer, tmp_path / "t")
    other = copy.deepcopy(trainer.model)
    with torch.no_grad():
        other.net[0].weight.mul_(1.02)  # as far as a further fine-tuning goes
    with pytest.raises(TrajectoryError, match=r"'net\.0\.weight', have other values than in training") as caught:
        score(trainer, tmp_path / "t", model=other)
    assert "\n" not in str(caught.value)
    rounded = copy.deepcopy(trainer.model).to(torch.bfloat16)
    score(trainer, tmp_path / "t", model=rounded)


def test_parameters_that_train_without_being_recorded_are_compared_with_their_last_values(tmp_path: Path) -> None:
    trainer = trained(tmp_path, made(), 2, {"parameters": r"net\.2"})
    score(trainer, tmp_path / "t", curvature="none")
    other = copy.deepcopy(trainer.model)
    with torch.no_grad():
        other.net[0].weight.copy_(made().net[0].weight)
    with pytest.raises(TrajectoryError, match=r"net\.0\.weight"):
        score(trainer, tmp_path / "t", model=other, curvature="none")
