"""`diagnose` on real recorded runs: its truth, its verdict on good and on wrong scores, bounds, bad input, CLI."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from datasets import Dataset
from torch import nn
from typer.testing import CliRunner

from hf_prune import Trajectory, TrajectoryCallback, TrajectoryError, add_influence
from hf_prune._core.scoring import scoring_of, with_scoring
from hf_prune.cli import runs
from hf_prune.diagnosis import Diagnosis, diagnose
from tests import toys

Run = tuple[Dataset, Dataset, Path, nn.Module]


def recorded(make: Any, rows: Dataset, held_out: Dataset, place: Path, **settings: Any) -> Run:
    torch.manual_seed(0)
    model = make()
    recorder = TrajectoryCallback(place / "t", snapshots_per_epoch=2)
    toys.train(model, rows, place / "out", [recorder], **({"learning_rate": 5e-3, "warmup_steps": 4} | settings))
    return rows, held_out, place / "t", model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """(rows, held-out rows, record, trained model) of an AdamW run with clipping."""
    place = tmp_path_factory.mktemp("run")
    rows, held_out = toys.vectors(80, noise=1.5), toys.vectors(40, seed=9, noise=1.5)
    return recorded(toys.Mlp, rows, held_out, place, max_grad_norm=0.5, num_train_epochs=6)


@pytest.fixture(scope="module")
def scored(run: Run) -> Dataset:
    rows, held_out, record, model = run
    return add_influence(rows, record, model=model, eval_dataset=held_out, directions=24, mode="visits")


@pytest.fixture(scope="module")
def diagnosis(run: Run) -> Diagnosis:
    rows, held_out, record, model = run
    return diagnose(rows, record, model=model, eval_dataset=held_out)


def test_good_scores_are_trusted(diagnosis: Diagnosis) -> None:
    assert diagnosis.correlation > 0.9
    assert diagnosis.relative_error < 0.5
    assert diagnosis.trusted
    assert "Trust the scores of groups" in diagnosis.verdict
    assert [group.rows for group in diagnosis.groups] == [4, 4, 16, 16]
    assert [condition.name for condition in diagnosis.conditions] == ["another batch order", "half the batch size"]
    assert diagnosis.steps == (30, 60)
    assert diagnosis.rows == 80
    assert 0 < diagnosis.replay_error < 0.3
    assert diagnosis.scoring.mode == "visits"
    small, large = diagnosis.groups[0].shift, diagnosis.groups[2].shift
    assert 0 < small < large
    assert diagnosis.noise_floor == diagnosis.conditions[0].shift > 0


def test_the_truth_is_what_a_trainer_without_the_rows_shows(tmp_path: Path) -> None:
    """Held-out logits and loss of a real run whose losses of a group are zeroed, beside the diagnosis's figures."""
    rows, held_out = toys.vectors(60), toys.vectors(30, seed=9)
    numbered = rows.add_column("row", list(range(60)))
    settings = {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 3}

    def trained(gone: list[int], callbacks: list[Any]) -> nn.Module:
        torch.manual_seed(1)
        model = LeavesOut(gone)
        toys.train(model, numbered, tmp_path / "out", callbacks, **settings)
        return model

    whole = trained([], [TrajectoryCallback(tmp_path / "t", window=1.0)])
    model = toys.Mlp()
    model.load_state_dict(whole.state_dict())
    found = diagnose(rows, tmp_path / "t", model=model, eval_dataset=held_out, groups=(0.1,), seed=4)
    gone = np.random.default_rng([4, 0]).permutation(60)[:6].tolist()
    less = trained(gone, [])
    x, y = torch.tensor(held_out["x"]), torch.tensor(held_out["labels"])
    with torch.no_grad():
        before, after = whole.net(x), less.net(x)
    loss = nn.functional.cross_entropy
    assert found.groups[0].loss_change == pytest.approx(float(loss(after, y) - loss(before, y)), rel=1e-3)
    # 32 questions estimate the length of the shift of a logit vector to about 1 / sqrt(2 * 32).
    length = float((after - before).square().sum(1).mean().sqrt())
    assert found.groups[0].shift == pytest.approx(length, rel=0.4)
    assert found.replay_error < 1e-4
    assert found.groups[0].correlation > 0.98


class LeavesOut(toys.Mlp):
    """Zeroes the losses of some rows, denominators kept."""

    def __init__(self, gone: list[int]):
        super().__init__()
        self.gone = gone

    def forward(self, x: torch.Tensor, labels: torch.Tensor, row: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        present = torch.tensor([int(i) not in self.gone for i in row]).to(losses)
        return {"loss": (losses * present).mean(), "logits": logits}


def test_columns_of_a_scored_dataset_are_judged_and_not_computed_again(run: Run, scored: Dataset) -> None:
    _, held_out, record, model = run
    before = sorted((record / "scores").iterdir())
    found = diagnose(scored, record, model=model, eval_dataset=held_out, groups=(0.2,))
    assert found.scoring == scoring_of(scored).config
    assert sorted((record / "scores").iterdir()) == before
    assert found.correlation > 0.9


def test_wrong_scores_are_warned_of(run: Run, scored: Dataset, caplog: Any) -> None:
    _, held_out, record, model = run
    wrong = np.random.default_rng(0).normal(size=(80, 24)).astype("float32")
    kind = scored.features["influence"]
    swapped = scored.remove_columns("influence").add_column("influence", list(wrong), feature=kind)
    swapped = with_scoring(swapped, scoring_of(scored))
    with caplog.at_level(logging.WARNING):
        found = diagnose(swapped, record, model=model, eval_dataset=held_out, groups=(0.2, 0.2))
    assert not found.trusted
    assert "Do not trust the scores of this run" in caplog.text


def test_scores_of_parameters_and_in_expectation_can_be_judged_too(run: Run) -> None:
    rows, held_out, record, model = run
    scored = add_influence(
        rows, record, model=model, eval_dataset=held_out, directions=24, space="parameters", mode="expected"
    )
    found = diagnose(scored, record, model=model, eval_dataset=held_out, groups=(0.2, 0.2))
    assert found.correlation > 0.7
    assert "L2 shift of the trained parameters" in found.explain()


def test_steps_bound_the_stretch_and_end_at_a_snapshot(run: Run, scored: Dataset) -> None:
    _, held_out, record, model = run
    marks = Trajectory.open(record).snapshot_steps
    found = diagnose(scored, record, model=model, eval_dataset=held_out, groups=(0.2,), steps=12)
    assert found.steps == (marks[0], max(mark for mark in marks if mark <= marks[0] + 12))
    assert found.scoring.directions == 24
    assert found.correlation > 0.9


def test_dropout_is_a_condition_of_a_model_that_has_it(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = toys.bert()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        return model

    rows, held_out, record, model = recorded(
        make, toys.tokens(32), toys.tokens(16, seed=3), tmp_path, num_train_epochs=2
    )
    found = diagnose(rows, record, model=model, eval_dataset=held_out, groups=(0.25,))
    assert [condition.name for condition in found.conditions][2:] == ["dropout"]
    assert found.conditions[2].shift > 0
    assert not any(module.p != 0.2 for module in model.modules() if isinstance(module, nn.Dropout))


def test_figures_survive_json_and_are_told_in_plain_words(diagnosis: Diagnosis) -> None:
    values = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert Diagnosis.from_dict(values) == diagnosis
    assert values["derived"]["correlation"] == diagnosis.correlation
    assert values["derived"]["trusted"] is True
    text = str(diagnosis)
    assert text.startswith(diagnosis.verdict)
    for words in ("4 rows (5%) left out", "Another batch order alone", "Half the batch size alone", "held-out loss"):
        assert words in text


def test_bad_input_gets_one_sentence(run: Run) -> None:
    rows, held_out, record, model = run

    def refused(error: type[Exception], message: str, data: Any = rows, **changes: Any) -> None:
        with pytest.raises(error, match=message) as caught:
            diagnose(data, record, **({"model": model, "eval_dataset": held_out} | changes))
        assert "\n" not in str(caught.value)

    refused(TypeError, "dataset is a list", [1])
    refused(TypeError, "eval_dataset is a NoneType", eval_dataset=None)
    refused(ValueError, "has no rows", eval_dataset=held_out.select([]))
    refused(ValueError, "shares in", groups=(0.2, 0.9))
    refused(ValueError, "shares in", groups=())
    refused(ValueError, "steps must be a whole number", steps=0)
    refused(ValueError, r"no snapshot within 2 steps.*at least that", steps=2)
    refused(TrajectoryError, "without added or removed rows", rows.select(range(79)))
    refused(TrajectoryError, "another model", model=toys.bert())
    few = add_influence(rows, record, model=model, eval_dataset=held_out, directions=2)
    refused(ValueError, "Fewer than 4 directions", few)


def test_the_command_says_what_the_library_says(tmp_path: Path) -> None:
    rows, held_out, record, model = recorded(
        toys.vit, toys.images(24), toys.images(12, seed=1), tmp_path, num_train_epochs=2
    )
    model.save_pretrained(tmp_path / "model")
    rows.save_to_disk(str(tmp_path / "train"))
    held_out.save_to_disk(str(tmp_path / "dev"))
    app = typer.Typer()
    app.command()(runs.diagnose)
    words = [tmp_path / "train", record, "--model", tmp_path / "model", "--eval-dataset", tmp_path / "dev"]
    words += ["--group", 0.25, "--out", tmp_path / "found.json", "--json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    values = json.loads(result.stdout)
    assert result.exit_code == (0 if values["derived"]["trusted"] else 3), result.output
    assert values == json.loads((tmp_path / "found.json").read_text())
    again = diagnose(rows, record, model=model, eval_dataset=held_out, groups=(0.25,))
    assert values["derived"]["correlation"] == pytest.approx(again.correlation, rel=1e-3)
