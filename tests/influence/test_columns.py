"""`add_influence` on real recorded runs: columns, cache, units, bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import nn

from hf_prune import Trajectory, TrajectoryCallback, TrajectoryError, UnsupportedError, add_influence
from hf_prune._core.scoring import scoring_of
from hf_prune.influence.queries import output_signs, parameter_queries
from tests import toys

MODELS = {
    "bert": (toys.bert, toys.tokens),
    "gpt2": (toys.gpt2, toys.tokens),
    "llama": (toys.llama, toys.tokens),
    "vit": (toys.vit, toys.images),
    "mlp": (toys.Mlp, toys.vectors),
    "mlp that divides by num_items_in_batch": (toys.MlpSum, toys.vectors),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """One recorded run of the plain module: (rows, held-out rows, record, trained model)."""
    directory = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model, rows = toys.Mlp(), toys.vectors(64)
    toys.train(model, rows, directory, [TrajectoryCallback(directory / "trajectory")], learning_rate=5e-3)
    return rows, toys.vectors(40, seed=9), directory / "trajectory", model


@pytest.mark.parametrize("mode", ["expected", "visits"])
@pytest.mark.parametrize("name", MODELS)
def test_columns_of_every_kind_of_model(name: str, mode: str, tmp_path: Path):
    make, data = MODELS[name]
    torch.manual_seed(0)
    model, rows, held_out = make(), data(24), data(10, seed=4)
    toys.train(model, rows, tmp_path, [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    scored = add_influence(rows, tmp_path / "t", model=model, eval_dataset=held_out, directions=8, mode=mode)
    vectors = np.array(scored["influence"])
    assert vectors.shape == (24, 8)
    assert scored.features["influence"].length == 8
    assert scored.features["influence_norm"].dtype == "float32"
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) > 0).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), scored["influence_norm"], rtol=1e-5)
    names = ["influence", "influence_norm", "influence_eval_loss", "influence_features", "influence_check"]
    assert scored.column_names == [*rows.column_names, *names]
    assert np.isfinite(np.array(scored["influence_features"])).all()
    assert scored["labels"] == rows["labels"]


def test_a_second_call_comes_from_the_cache(run, caplog):
    rows, held_out, record, model = run
    arguments = {"model": model, "eval_dataset": held_out, "directions": 8, "seed": 77}
    first = add_influence(rows, record, **arguments)
    files = [Path(file["filename"]).stat().st_mtime_ns for file in first.cache_files]
    second = add_influence(rows, record, **arguments)
    assert first._fingerprint == second._fingerprint
    assert files, "the result must lie in a cache file"
    assert [Path(file["filename"]).stat().st_mtime_ns for file in second.cache_files] == files
    other = add_influence(rows, record, **(arguments | {"seed": 78}))
    assert other._fingerprint != first._fingerprint


def test_result_does_not_depend_on_processes_or_batch_size(run):
    rows, held_out, record, model = run
    arguments = {"model": model, "eval_dataset": held_out, "directions": 8}
    results = []
    for split in ({}, {"batch_size": 7}, {"batch_size": 16, "num_proc": 2}):
        shutil.rmtree(record / "scores", ignore_errors=True)  # each is to be computed
        results.append(np.array(add_influence(rows, record, **arguments, **split)["influence"]))
        computed = list((record / "scores").glob("*.arrow"))
        assert len(computed) == split.get("num_proc", 1)
    one, small, two = results
    assert np.allclose(one, small, rtol=1e-4, atol=1e-7)
    assert np.allclose(one, two, rtol=1e-4, atol=1e-7)


def test_both_modes_tell_the_same_story(run):
    rows, held_out, record, model = run
    arguments = {"model": model, "eval_dataset": held_out, "directions": 16}
    columns = [
        np.array(add_influence(rows, record, **arguments, mode=mode)["influence"]) for mode in ("expected", "visits")
    ]
    assert np.corrcoef(columns[0].ravel(), columns[1].ravel())[0, 1] > 0.9
    assert 0.7 < np.linalg.norm(columns[0]) / np.linalg.norm(columns[1]) < 1.4


def test_predicted_shift_matches_leave_one_out_retraining(tmp_path: Path):
    """The whole path in its units: outputs, norm and held-out loss, against retraining with a row's loss zeroed."""
    rows, held_out = toys.vectors(48), toys.vectors(30, seed=9)
    rows = rows.add_column("row", list(range(48)))
    settings = {"learning_rate": 0.05, "optim": "sgd", "max_grad_norm": 0.0, "num_train_epochs": 6}

    def retrain(left_out: int, callbacks: list) -> LeavesOut:
        torch.manual_seed(3)
        model = LeavesOut(left_out)
        toys.train(model, rows, tmp_path, callbacks, **settings)
        return model.eval()

    model = retrain(-1, [TrajectoryCallback(tmp_path / "t", window=1.0, snapshots_per_epoch=6)])
    scored = add_influence(rows, tmp_path / "t", model=model, eval_dataset=held_out, directions=32, mode="visits")
    x, y = torch.tensor(held_out["x"]), torch.tensor(held_out["labels"])
    base = model.net(x).detach()
    signs = output_signs(range(30), 32, (3,), seed=0).float().flatten(1) / (32 * 30) ** 0.5
    shifts, losses, lengths = [], [], []
    for row in range(8):
        moved = retrain(row, []).net(x).detach()
        shifts.append(signs @ (moved - base).flatten())
        losses.append(nn.functional.cross_entropy(moved, y) - nn.functional.cross_entropy(base, y))
        lengths.append((moved - base).norm() / 30**0.5)
    predicted = torch.tensor(scored["influence"][:8])
    truth = torch.stack(shifts)
    assert (predicted - truth).norm() / truth.norm() < 0.05
    assert np.corrcoef(scored["influence_eval_loss"][:8], losses)[0, 1] > 0.99
    assert np.allclose(scored["influence_eval_loss"][:8], losses, atol=0.1 * max(map(abs, losses)))
    # Rows of signs are a sketch of the shift: the norm is right on average.
    assert 0.7 < np.mean(scored["influence_norm"][:8]) / np.mean(lengths) < 1.4


class LeavesOut(toys.Mlp):
    """Leaves one row's loss out, denominators kept."""

    def __init__(self, left_out: int):
        super().__init__()
        self.left_out = left_out

    def forward(self, x, labels=None, row=None):  # type: ignore[override]
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        present = 1.0 if row is None else (row != self.left_out).float()
        return {"loss": (losses * present).mean(), "logits": logits}


@pytest.mark.parametrize("head", [toys.Mlp, toys.MlpSum, toys.MlpKwargs])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_influence_is_in_the_trainers_own_weights(head: type[toys.Mlp], accumulation: int, tmp_path: Path):
    """With SGD, one recorded step moves the parameters by what its visits' removals sum to."""
    torch.manual_seed(0)
    model, rows = head(), toys.vectors(24)
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    toys.train(
        model,
        rows,
        tmp_path,
        [TrajectoryCallback(tmp_path / "t", window=1.0)],
        max_steps=1,
        gradient_accumulation_steps=accumulation,
        **settings,
    )
    record = Trajectory.open(tmp_path / "t")
    moved = record.parameters_at(1) - record.parameters_at(0)
    scored = add_influence(rows, record, model=model, directions=20, space="parameters", mode="visits")
    asked = parameter_queries(moved, 20, seed=0) @ moved
    assert np.allclose(-np.array(scored["influence"]).sum(0), asked, rtol=1e-4, atol=1e-6)


def test_without_held_out_rows_there_is_no_loss_column(run):
    rows, _, record, model = run
    scored = add_influence(rows, record, model=model, directions=4)
    assert "influence_eval_loss" not in scored.column_names


def test_the_dataset_remembers_how_it_was_scored(run):
    rows, held_out, record, model = run
    scored = add_influence(rows, record, model=model, eval_dataset=held_out, directions=4)
    kept = scored.select([3, 1]).map(lambda row: row)
    assert scoring_of(kept).run.trajectory_digest == Trajectory.open(record).digest
    assert scoring_of(kept).config.curvature == "gauss-newton"
    assert str(record.parent) not in repr(scoring_of(kept))


def test_bad_input_gets_one_sentence(run):
    rows, held_out, record, model = run

    def refused(error: type[Exception], message: str, data=rows, **changes):
        arguments = {"model": model, "eval_dataset": held_out, "directions": 4} | changes
        with pytest.raises(error, match=message) as caught:
            add_influence(data, record, **arguments)
        assert "\n" not in str(caught.value)

    refused(TypeError, "pass one split", DatasetDict(train=rows))
    refused(TypeError, "must be a datasets.Dataset", [1, 2])
    refused(ValueError, "more than the 64 rows", directions=65)
    refused(ValueError, "whole number from 1 on", directions=0)
    refused(ValueError, "batch_size must be a whole number", batch_size=0)
    refused(ValueError, "space must be one of", space="inputs")
    refused(ValueError, "mode must be one of", mode="all")
    refused(ValueError, "curvature must be one of", curvature="diagonal")
    refused(ValueError, "has no rows", eval_dataset=held_out.select([]))
    refused(TrajectoryError, "64.*without added or removed rows", rows.select(range(63)))
    refused(TrajectoryError, "changed or reordered", rows.select(list(reversed(range(64)))))
    refused(TrajectoryError, "none of the recorded columns", Dataset.from_dict({"text": ["a"] * 64}))
    refused(TrajectoryError, "another model", model=toys.bert())
    refused(TrajectoryError, "another model.*shape", model=toys.Mlp(hidden=5))
    refused(ValueError, "loss= must return one loss per example", loss=nn.functional.cross_entropy)
    refused(ValueError, "engine must be one of auto, dense, projected", engine="fast")
    refused(ValueError, "no exact curvature", engine="projected", curvature="exact")
    refused(ValueError, "have no visits", train_dataset=rows, mode="visits")
    refused(TypeError, "train_dataset must be a datasets.Dataset", train_dataset=[1])
    refused(ValueError, "max_memory must be a number of bytes", max_memory=0.5)
    with pytest.raises(TrajectoryError, match="no trajectory"):
        add_influence(rows, record.parent / "elsewhere", model=model, directions=4)


def test_a_dense_sweep_that_does_not_fit_into_memory_is_refused_with_what_would_do(run):
    rows, held_out, record, model = run
    with pytest.raises(ValueError, match="use engine='projected' with curvature='gauss-newton', fewer"):
        add_influence(rows, record, model=model, eval_dataset=held_out, directions=5, max_memory=1000)


def test_chaotic_stretches_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    model, rows = toys.Mlp(), toys.vectors(64, noise=3.0)
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0, snapshots_per_epoch=8)
    settings = {"optim": "sgd", "learning_rate": 8.0, "max_grad_norm": 0.0, "num_train_epochs": 6}
    toys.train(model, rows, tmp_path / "out", [recorder], **settings)
    with caplog.at_level("WARNING"):
        add_influence(rows, tmp_path / "t", model=model, directions=4)
    assert "record with a smaller window" in caplog.text


def test_scores_beyond_all_numbers_are_refused(tmp_path: Path):
    torch.manual_seed(0)
    model, rows = toys.Mlp(), toys.vectors(64, noise=3.0)
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0, snapshots_per_epoch=8)
    settings = {"optim": "sgd", "learning_rate": 8.0, "max_grad_norm": 0.0, "num_train_epochs": 30}
    toys.train(model, rows, tmp_path / "out", [recorder], **settings)
    with pytest.raises(UnsupportedError, match="ran into NaN or infinity"):
        add_influence(rows, tmp_path / "t", model=model, directions=4, engine="dense")


def test_a_loss_that_is_no_mean_over_examples_is_refused(tmp_path: Path):
    class Odd(toys.Mlp):
        def forward(self, x, labels=None):  # type: ignore[override]
            outputs = super().forward(x, labels)
            return outputs | {"loss": outputs["loss"].square()} if labels is not None else outputs

    model, rows = Odd(), toys.vectors(24)
    toys.train(model, rows, tmp_path, [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    with pytest.raises(UnsupportedError, match="pass loss="):
        add_influence(rows, tmp_path / "t", model=model, directions=4)
