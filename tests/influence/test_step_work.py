"""What one step gives the sweep, by any budget of memory, against per-example gradients and whole matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.influence.dense.curvature import Parts, StepWork, _chunks, step_work
from hf_prune.model.objective import Objective
from hf_prune.model.rows import Rows
from hf_prune.trajectory.manifest import Parameter
from tests import toys

B, K = 7, 5
GROUPS = torch.tensor([0, 0, 1, 1, 1, 2, 2])


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = toys.Mlp(hidden=4)
    parameters = [Parameter(name, tuple(p.shape), 0) for name, p in model.named_parameters()]
    objective = Objective(model, parameters, dtype=torch.float64)
    theta, batch = objective.flatten(), Rows(toys.vectors(B), objective.model).batch(range(B))
    weights, C = torch.rand(B).double() + 0.1, torch.randn(K, len(theta)).double()
    G = torch.func.jacrev(lambda theta: objective.losses(theta, batch))(theta)
    parts = Parts(torch.stack([(weights * (group == GROUPS)) @ G for group in range(3)]), GROUPS)
    return objective, theta, batch, weights, C, G, parts


def work(setting, kind: str, budget: int, **settings) -> StepWork:
    objective, theta, batch, weights, C, _, _ = setting
    return step_work(objective, theta, batch, weights, C, kind, budget=budget, **settings)


@pytest.mark.parametrize("rows_at_once", [0, 1, 2, 100])
def test_products_of_visits_do_not_depend_on_the_budget(setting, rows_at_once: int):
    _, theta, _, weights, C, G, parts = setting
    found = work(setting, "fisher", rows_at_once * len(theta) * 8, dots=True, parts=parts)
    assert torch.allclose(found.dots, C @ G.T)
    assert torch.allclose(found.curved, ((C @ G.T) * weights) @ G)
    whole = weights @ G
    own = torch.stack([G[i] @ parts.gradients[GROUPS[i]] for i in range(B)])
    assert torch.allclose(parts.whole, whole)
    assert torch.allclose(found.along, torch.stack([G @ whole, G.square().sum(1), own]))


@pytest.mark.parametrize("kind", ["exact", "gauss-newton"])
@pytest.mark.parametrize("at_once", [0, 2, 100])
def test_curvature_products_do_not_depend_on_the_budget(setting, kind: str, at_once: int):
    objective, theta, batch, weights, C, _, _ = setting
    found = work(setting, kind, at_once * 8 * len(theta) * 8, dots=False)
    assert found.dots is None
    assert found.along is None
    if kind == "exact":
        matrix = torch.func.hessian(lambda theta: objective.losses(theta, batch) @ weights)(theta)
        assert torch.allclose(found.curved, C @ matrix)
        return
    J = torch.func.jacrev(lambda theta: objective.logits(theta, batch.inputs))(theta)
    p = objective.logits(theta, batch.inputs).softmax(1)
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    truth = torch.einsum("kp,bcp,bcd,bdq,b->kq", C, J, H, J, weights)
    assert float((found.curved - truth).norm() / truth.norm()) < 2e-3


def test_what_is_not_asked_for_is_not_made(setting):
    _, _, _, _, C, G, parts = setting
    nothing = work(setting, "none", 1 << 20, dots=False)
    assert nothing == StepWork(None, None, None)
    only = work(setting, "none", 1 << 20, dots=True)
    assert torch.allclose(only.dots, C @ G.T)
    assert only.along is None
    assert only.curved is None
    assert work(setting, "none", 1 << 20, dots=True, parts=parts).along is not None


def test_one_group_is_the_whole_batch(setting):
    _, _, _, weights, _, G, _ = setting
    parts = Parts((weights @ G)[None], torch.zeros(B, dtype=torch.long))
    assert torch.allclose(parts.own(G[2:5], slice(2, 5)), G[2:5] @ (weights @ G))


@given(total=st.integers(1, 50), each=st.integers(1, 1000), budget=st.integers(0, 20_000))
def test_chunks_hold_as_much_as_the_budget_and_one_at_least(total: int, each: int, budget: int):
    sizes = [part.stop - part.start for part in _chunks(total, each, budget)]
    parts = [row for part in _chunks(total, each, budget) for row in range(total)[part]]
    assert parts == list(range(total))
    assert all(size * each <= max(budget, each) for size in sizes)
    assert len(set(sizes[:-1])) <= 1
    assert len(sizes) == 1 or (sizes[0] + 1) * each > budget
