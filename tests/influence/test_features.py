"""The features column: what the last linear layer sees of each row."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.influence.features import WIDTH, RowFeatures
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows
from hf_prune.trajectory.manifest import Parameter
from tests import toys


def features(model: nn.Module, rows: Dataset, batch: int = 5) -> np.ndarray:
    """The column as `add_influence` makes it, in batches of some rows."""
    parameters = [Parameter(name, tuple(value.shape), group=0) for name, value in model.named_parameters()]
    objective = Objective(model, parameters)
    found = RowFeatures(objective, objective.flatten(), Rows(rows, objective.model), "seen")
    numbers = list(range(len(rows)))
    parts = [found({}, numbers[start : start + batch])["seen"] for start in range(0, len(rows), batch)]
    assert {part.shape[1] for part in parts} == {found.width}
    return np.concatenate(parts)


def placed(column: Any) -> torch.Tensor:
    values = torch.tensor(np.array(column))
    return values.float() if values.is_floating_point() else values


def inputs_of(layer: nn.Module, model: nn.Module, rows: Dataset) -> torch.Tensor:
    """What enters a layer, by a plain forward pass of the model itself."""
    caught: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, output: caught.append(given[0].detach()))
    names = [name for name in rows.column_names if name != "labels"]
    with torch.no_grad():
        model.eval()(**{name: placed(rows[name]) for name in names})
    handle.remove()
    return caught[-1]


@pytest.mark.parametrize(
    ("make", "data", "layer"),
    [
        (toys.Mlp, toys.vectors, lambda model: model.net[-1]),
        (toys.bert, toys.tokens, lambda model: model.classifier),
        (toys.vit, toys.images, lambda model: model.classifier),
    ],
)
def test_features_are_the_inputs_of_the_last_linear_layer(make: Any, data: Any, layer: Any):
    model, rows = make(), data(12)
    truth = inputs_of(layer(model), model, rows).numpy()
    np.testing.assert_allclose(features(model, rows), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [toys.gpt2, toys.llama])
def test_heads_that_take_one_position_have_its_inputs(make: Any):
    model, rows = make(), toys.tokens(12)
    inputs = inputs_of(model.score, model, rows)
    last = np.array(rows["attention_mask"]).sum(axis=1) - 1
    truth = inputs[torch.arange(12), torch.tensor(last)].numpy()
    np.testing.assert_allclose(features(model, rows), truth, rtol=1e-4, atol=1e-5)


class Tagger(nn.Module):
    """A model of tokens with a vocabulary, which must never be multiplied out over all rows."""

    def __init__(self, width: int, classes: int = 9):
        super().__init__()
        self.embed, self.head, self.seen = nn.Embedding(toys.VOCABULARY, width), nn.Linear(width, classes), 0
        self.head.register_forward_hook(lambda module, given, output: setattr(self, "seen", self.seen + len(output)))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.embed(input_ids))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def tagged(rows: int = 10, length: int = 6) -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (rows, length))
    labels[rng.random(labels.shape) < 0.4] = -100
    labels[:, 0] = 1
    return Dataset.from_dict(
        {"input_ids": rng.integers(0, toys.VOCABULARY, (rows, length)).tolist(), "labels": labels.tolist()}
    )


def test_rows_of_tokens_have_the_mean_over_labelled_ones():
    model, rows = Tagger(8), tagged()
    found = features(model, rows)
    embedded = model.embed(torch.tensor(rows["input_ids"])).detach().numpy()
    for row, vectors, labels in zip(found, embedded, rows["labels"], strict=True):
        np.testing.assert_allclose(row, vectors[np.array(labels) != -100].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_wide_layers_are_projected_and_distances_stay():
    model, rows = Tagger(512), tagged(40)
    found = features(model, rows)
    assert found.shape == (40, WIDTH)
    embedded = model.embed(torch.tensor(rows["input_ids"])).detach().numpy()
    counted = np.array(rows["labels"]) != -100
    truth = (embedded * counted[..., None]).sum(1) / counted.sum(1, keepdims=True)
    before, after = (np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(40, 1)] for x in (truth, found))
    assert abs(np.mean(after / before) - 1) < 0.1
    assert np.std(after / before) < 0.15


def test_a_recorded_run_has_the_column_for_old_and_new_rows(tmp_path: Path):
    torch.manual_seed(0)
    model, rows = toys.Mlp(), toys.vectors(40)
    toys.train(model, rows, tmp_path, [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    scored = add_influence(rows, tmp_path / "t", model=model, eval_dataset=toys.vectors(9, seed=4), directions=8)
    truth = inputs_of(model.net[-1], model, rows).numpy()
    np.testing.assert_allclose(np.array(scored["influence_features"]), truth, rtol=1e-4, atol=1e-5)
    others = toys.vectors(9, seed=5)
    new = add_influence(others, tmp_path / "t", model=model, train_dataset=rows, directions=8)
    np.testing.assert_allclose(
        np.array(new["influence_features"]), inputs_of(model.net[-1], model, others).numpy(), rtol=1e-4, atol=1e-5
    )


def test_a_model_without_a_last_linear_layer_has_no_column_and_says_so(tmp_path: Path, caplog: Any):
    torch.manual_seed(0)
    model, rows = toys.Cubed(), toys.vectors(24)
    toys.train(model, rows, tmp_path, [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    with caplog.at_level(logging.WARNING, "hf_prune"):
        scored = add_influence(rows, tmp_path / "t", model=model, directions=8)
    assert "influence_features" not in scored.column_names
    assert "No linear layer of Cubed gives its logits" in caplog.text
