"""`add_scores` on real recorded runs: every column against a second computation, units, cache, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Value

from hf_prune import Trajectory, TrajectoryCallback, TrajectoryError, add_influence
from hf_prune._core.scoring import scoring_of
from hf_prune.record import with_example_ids
from hf_prune.scores import add_scores
from tests import toys
from tests.record.statistics_truth import rows_for, train_noting, truth_of
from tests.record.truth import Case
from tests.scores.truth import scores_of

COLUMNS = ["el2n", "grand", "forgetting", "aum", "loss", "confidence", "variability"]


@pytest.mark.parametrize("early", [1, 3, 10])
def test_scores_equal_a_second_computation(early: int, tmp_path: Path) -> None:
    case = Case(rows=37, arguments={"gradient_accumulation_steps": 2, "learning_rate": 0.6, "num_train_epochs": 8})
    model = train_noting("classes", case, tmp_path)
    truth = scores_of(truth_of("classes", model.notes), 37, early)
    scored = add_scores(rows_for("classes", 37), tmp_path / "trajectory", early=early)
    assert scored.column_names[2:] == [name for name in COLUMNS if name != "grand"]
    for name, values in truth.items():
        assert scored.features[name] == Value("float32")
        np.testing.assert_allclose(scored[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert len(set(scored["forgetting"])) > 2, "the run must forget rows, and some never learn"


@pytest.mark.parametrize("kind", ["tokens", "next tokens"])
def test_scores_of_token_rows_are_of_the_means_over_their_labelled_tokens(kind: str, tmp_path: Path) -> None:
    model = train_noting(kind, Case(rows=20), tmp_path)
    truth = scores_of(truth_of(kind, model.notes), 20, 10)
    scored = add_scores(rows_for(kind, 20), tmp_path / "trajectory")
    for name, values in truth.items():
        np.testing.assert_allclose(scored[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.flatnonzero(np.isnan(scored["aum"])).tolist() == [6, 13], "rows without labelled tokens"


def test_a_regression_has_its_loss_alone(tmp_path: Path) -> None:
    train_noting("values", Case(rows=20), tmp_path, learning_rate=0.02)
    scored = add_scores(rows_for("values", 20), tmp_path / "trajectory")
    assert scored.column_names[2:] == ["loss"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path, torch.nn.Module]:
    """A recorded run: (rows, record, trained model)."""
    directory = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model, rows = toys.Mlp(), toys.vectors(40)
    toys.train(model, rows, directory / "out", [TrajectoryCallback(directory / "t", row_statistics=True)])
    return rows, directory / "t", model


def test_grand_is_the_mean_norm_of_the_rows_gradients(run: Any) -> None:
    rows, record, model = run
    scored = add_scores(rows, record, model=model, batch_size=7)
    assert scored.column_names[2:] == COLUMNS
    trajectory = Trajectory.open(record)
    steps = trajectory.snapshot_steps
    assert len(steps) == 3
    truth = np.zeros(len(rows))
    for step in steps:
        again = toys.Mlp()
        torch.nn.utils.vector_to_parameters(trajectory.parameters_at(step), again.parameters())
        for i, row in enumerate(rows):
            again.zero_grad()
            again(torch.tensor([row["x"]]), torch.tensor([row["labels"]]))["loss"].backward()
            truth[i] += torch.cat([p.grad.flatten() for p in again.parameters()]).norm().item() / len(steps)
    np.testing.assert_allclose(scored["grand"], truth, rtol=1e-4)


def test_grand_of_a_transformer_with_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, rows = toys.bert(), toys.tokens(16)
    recorder = TrajectoryCallback(tmp_path / "t", row_statistics=True)
    toys.train(model, rows, tmp_path / "out", [recorder], num_train_epochs=2)
    scored = add_scores(rows, tmp_path / "t", model=model)
    assert (np.array(scored["grand"]) > 0).all()


def test_the_same_call_gives_the_same_fingerprint_and_keeps_gradient_norms(run: Any) -> None:
    rows, record, model = run
    first = add_scores(rows, record, model=model)
    kept = {path: path.stat().st_mtime_ns for path in (record / "scores").glob("grand-*")}
    assert len(kept) == 1
    second = add_scores(rows, str(record), model=model)
    assert first._fingerprint == second._fingerprint
    assert {path: path.stat().st_mtime_ns for path in (record / "scores").glob("grand-*")} == kept
    assert first["grand"] == second["grand"]
    assert add_scores(rows, record, model=model, early=1)._fingerprint != first._fingerprint
    assert add_scores(rows, record)._fingerprint != first._fingerprint


def test_scores_and_influence_stand_side_by_side(run: Any) -> None:
    rows, record, model = run
    influence = add_influence(rows, record, model=model, directions=4)
    both = add_scores(influence, record)
    assert both["influence_norm"] == influence["influence_norm"]
    assert scoring_of(both).config.directions == 4
    other = add_influence(add_scores(rows, record), record, model=model, directions=4)
    assert other["aum"] == both["aum"]
    assert other["influence_norm"] == both["influence_norm"]


def test_rows_that_were_never_visited_have_nan_and_are_told_of(tmp_path: Path, caplog: Any) -> None:
    rows = toys.vectors(40)
    recorder = TrajectoryCallback(tmp_path / "t", row_statistics=True)
    model = toys.Mlp()
    toys.train(model, rows, tmp_path / "out", [recorder], max_steps=3)
    with caplog.at_level("WARNING"):
        scored = add_scores(rows, tmp_path / "t", model=model)
    assert "16 of 40 rows were never visited" in caplog.text
    seen = {int(i) for step in Trajectory.open(tmp_path / "t").steps() for i in step.ids}
    for name in ("el2n", "forgetting", "aum", "loss", "confidence", "variability"):
        assert {i for i, value in enumerate(scored[name]) if np.isfinite(value)} == seen
    assert np.isfinite(scored["grand"]).all()


def test_rows_are_found_by_their_ids(tmp_path: Path) -> None:
    rows = with_example_ids(toys.vectors(40)).select(range(39, -1, -1))
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0, snapshots_per_epoch=1000, row_statistics=True)
    toys.train(toys.Mlp(), rows, tmp_path / "out", [recorder], remove_unused_columns=False, num_train_epochs=1)
    scored = add_scores(rows, tmp_path / "t")
    model = toys.Mlp()
    torch.nn.utils.vector_to_parameters(Trajectory.open(tmp_path / "t").parameters_at(3), model.parameters())
    step = Trajectory.open(tmp_path / "t").step(3)
    for i in step.ids:
        row = rows[39 - int(i)]
        loss = model(torch.tensor([row["x"]]), torch.tensor([row["labels"]]))["loss"].item()
        assert scored["loss"][39 - int(i)] == pytest.approx(loss, rel=1e-4)


def test_bad_input_gets_one_sentence(run: Any, tmp_path: Path) -> None:
    rows, record, _ = run

    def refused(error: type[Exception], message: str, data: Any = rows, place: Path = record, **changes: Any) -> None:
        with pytest.raises(error, match=message) as caught:
            add_scores(data, place, **changes)
        assert "\n" not in str(caught.value)

    refused(TypeError, "is a DatasetDict; pass", DatasetDict(train=rows))
    refused(ValueError, "early must be a whole number", early=0)
    refused(ValueError, "batch_size must be a whole number", batch_size=1.5)
    refused(ValueError, "has a column 'aum' already", rows.add_column("aum", [0.0] * 40))
    refused(TrajectoryError, "without added or removed rows", rows.select(range(39)))
    refused(TrajectoryError, "changed or reordered", rows.select(range(39, -1, -1)))
    toys.train(toys.Mlp(), rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "plain")], num_train_epochs=1)
    refused(TrajectoryError, r"row_statistics=True", place=tmp_path / "plain")
