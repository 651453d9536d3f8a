"""The queries as gradients, against whole Jacobians, and what the length of their answers estimates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForTokenClassification

from hf_prune.influence.queries import (
    PROBE_ROWS,
    loss_query,
    output_queries,
    output_signs,
    parameter_queries,
    probe,
)
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows
from hf_prune.trajectory.manifest import Parameter
from tests import toys
from tests.influence.test_objectives import ragged, tagger, tokenizer


def setting(model: torch.nn.Module, rows, collator=None) -> tuple[Objective, torch.Tensor, Rows]:
    parameters = tuple(Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters())
    objective = Objective(model, parameters, dtype=torch.float64)
    return objective, objective.flatten(), Rows(rows, objective.model, collator)


def classifier() -> tuple[Objective, torch.Tensor, Rows]:
    torch.manual_seed(0)
    return setting(toys.Mlp(hidden=4), toys.vectors(11))


def tokens() -> tuple[Objective, torch.Tensor, Rows]:
    torch.manual_seed(0)
    return setting(tagger(), ragged(5, label="tokens"), DataCollatorForTokenClassification(tokenizer()))


@pytest.mark.parametrize("make", [classifier, tokens])
def test_output_queries_are_gradients_of_signed_sums_of_the_logits_that_count(make):
    objective, theta, rows = make()
    k, n = 3, len(rows)
    batch = rows.batch(range(n))
    signs = output_signs(range(n), k, tuple(objective.logits(theta, batch.inputs).shape[1:]), seed=7).double()
    labelled = batch.labels != -100 if batch.labels.ndim > 1 else None
    if labelled is not None:
        assert not labelled.all()
        signs = signs * labelled[..., None]

    def sums(theta: torch.Tensor) -> torch.Tensor:
        logits = objective.logits(theta, batch.inputs)
        return torch.stack([(logits * own).sum() for own in signs]) / (k * n) ** 0.5

    truth = torch.func.jacrev(sums)(theta)
    found = output_queries(objective, theta, rows, k, batch_size=4, seed=7)
    assert torch.allclose(found, truth, rtol=1e-6, atol=1e-9)


def test_the_answers_length_is_the_rms_shift_of_a_rows_logits():
    objective, theta, rows = classifier()
    queries = output_queries(objective, theta, rows, 4000, batch_size=11, seed=0)
    step = 1e-4 * torch.randn(len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = rows.batch(range(len(rows))).inputs
    shift = objective.logits(theta + step, inputs) - objective.logits(theta, inputs)
    assert float((queries @ step).norm()) == pytest.approx(float(shift.square().sum(1).mean().sqrt()), rel=0.05)


def test_the_answers_length_is_that_of_the_parameters_shift():
    step = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    queries = parameter_queries(torch.zeros(50, dtype=torch.float64), 4000, seed=0)
    assert queries.dtype == torch.float64
    assert float((queries @ step).norm()) == pytest.approx(float(step.norm()), rel=0.05)
    fewer = parameter_queries(torch.zeros(50, dtype=torch.float64), 16, seed=0)
    assert torch.allclose(fewer * 4, queries[:16] * 4000**0.5)


@pytest.mark.parametrize("make", [classifier, tokens])
def test_the_loss_query_is_the_gradient_of_the_mean_over_items(make):
    objective, theta, rows = make()
    batch = rows.batch(range(len(rows)))

    def mean(theta: torch.Tensor) -> torch.Tensor:
        logits = objective.logits(theta, batch.inputs).flatten(0, -2)
        return torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), ignore_index=-100)

    found = loss_query(objective, theta, rows, batch_size=3)
    assert found.shape == (1, len(theta))
    assert torch.allclose(found[0], torch.func.grad(mean)(theta), rtol=1e-5, atol=1e-8)


def test_signs_are_fair_and_belong_to_row_position_and_seed():
    signs = output_signs(range(40), 50, (6, 5), seed=3)
    assert signs.shape == (50, 40, 6, 5)
    assert set(signs.flatten().tolist()) == {-1, 1}
    assert abs(float(signs.double().sum())) < 4 * signs.numel() ** 0.5
    assert torch.equal(output_signs(range(10, 12), 50, (4, 5), seed=3), signs[:, 10:12, :4])
    assert not torch.equal(output_signs(range(40), 50, (6, 5), seed=4), signs)
    for axis in range(4):  # queries, rows, positions and classes each have signs of their own
        pair = torch.stack([signs.select(axis, place).flatten().double() for place in (0, 1)])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1


def test_rows_that_stand_in_for_held_out_ones_are_drawn_once_each():
    objective, _, _ = classifier()
    n = PROBE_ROWS + 50
    x = np.zeros((n, 8), dtype=np.float32)
    x[:, 0] = np.arange(n)
    many = Rows(Dataset.from_dict({"x": x, "labels": [0] * n}), objective.model)

    def drawn(rows: Rows, seed: int) -> np.ndarray:
        found = probe(rows, seed)
        return found.batch(range(len(found))).inputs["x"][:, 0].numpy()

    assert len(drawn(many, 0)) == PROBE_ROWS
    assert (np.diff(drawn(many, 0)) > 0).all()
    assert not np.array_equal(drawn(many, 0), drawn(many, 1))
    assert len(drawn(many.select(range(9)), 0)) == 9
