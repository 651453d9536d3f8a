"""Per-example gradients and curvature products on real architectures, against plain autograd loops."""

from __future__ import annotations

import pytest
import torch

from hf_prune.influence.dense.curvature import factored_products, gauss_newton_products, step_work
from hf_prune.model.objective import Objective
from hf_prune.model.per_example import example_gradients
from hf_prune.model.rows import Rows
from hf_prune.trajectory.manifest import Parameter
from tests import toys

MODELS = {
    "bert": (toys.bert, toys.tokens),
    "gpt2": (toys.gpt2, toys.tokens),
    "llama": (toys.llama, toys.tokens),
    "vit": (toys.vit, toys.images),
    "mlp": (toys.Mlp, toys.vectors),
}


# Softmax and some norms of transformers compute in float32 whatever the model's precision.
ROUNDING = 1e-5


def error_of(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def setting(name: str, rows: int = 5):
    torch.manual_seed(0)
    make, data = MODELS[name]
    model = make().eval()
    if name != "mlp":
        model.set_attn_implementation("eager")
    parameters = tuple(Parameter(n, tuple(p.shape), 0) for n, p in model.named_parameters())
    objective = Objective(model, parameters, dtype=torch.float64)
    batch = Rows(data(rows), objective.model).batch(range(rows))
    return model.double(), objective, objective.flatten(), batch


@pytest.mark.parametrize("name", MODELS)
def test_example_gradients_equal_a_loop_of_backward_passes(name: str):
    model, objective, theta, batch = setting(name)
    found = example_gradients(objective, theta, batch)
    for i in range(len(batch)):
        model.zero_grad()
        inputs = {key: value[i : i + 1] for key, value in batch.inputs.items()}
        outputs = model(**inputs, labels=batch.labels[i : i + 1])
        outputs["loss"].backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        truth = torch.cat([g.flatten() for g in grads])
        assert error_of(found[i], truth) < ROUNDING


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["exact", "gauss-newton", "fisher"])
def test_curvature_products_equal_brute_force(name: str, kind: str):
    model, objective, theta, batch = setting(name)
    weights = torch.rand(len(batch), dtype=torch.float64)
    C = torch.randn(7, len(theta), dtype=torch.float64)
    work = step_work(objective, theta, batch, weights, C, kind, dots=True, budget=1 << 22)
    G = example_gradients(objective, theta, batch)
    assert error_of(work.dots, C @ G.T) < ROUNDING
    if kind == "fisher":
        truth = ((C @ G.T) * weights) @ G
    elif kind == "exact":
        # Reverse over reverse with plain autograd, one direction after the other, on the caller's model.
        values = list(model.parameters())
        losses = torch.nn.functional.cross_entropy(model(**batch.inputs)["logits"], batch.labels, reduction="none")
        slopes = torch.autograd.grad(losses @ weights, values, create_graph=True, allow_unused=True)
        slope = torch.cat(
            [torch.zeros_like(v).flatten() if g is None else g.flatten() for g, v in zip(slopes, values, strict=True)]
        )
        truth = []
        for c in C:
            rows = torch.autograd.grad(slope @ c, values, retain_graph=True, allow_unused=True)
            truth.append(
                torch.cat(
                    [
                        torch.zeros_like(v).flatten() if r is None else r.flatten()
                        for r, v in zip(rows, values, strict=True)
                    ]
                )
            )
        truth = torch.stack(truth)
    else:
        J = torch.func.jacrev(lambda t: objective.logits(t, batch.inputs))(theta)
        p = objective.logits(theta, batch.inputs).softmax(-1).detach()
        H = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        truth = torch.einsum("kp,bcp,bcd,bdq,b->kq", C, J, H, J, weights)
    # Factors leave out a thousandth of the curvature in the logits.
    assert error_of(work.curved, truth) < (2e-3 if kind == "gauss-newton" else ROUNDING)


def test_both_ways_to_gauss_newton_agree():
    _, objective, theta, batch = setting("vit")
    weights = torch.rand(len(batch), dtype=torch.float64)
    C = torch.randn(7, len(theta), dtype=torch.float64)
    by_factors = factored_products(objective, theta, batch, weights, C, budget=1 << 30)
    by_directions = gauss_newton_products(objective, theta, batch, weights, C, budget=1 << 22)
    assert error_of(by_factors, by_directions) < 2e-3


def test_scoring_leaves_the_model_alone():
    model = toys.bert()
    attention, training = model.config._attn_implementation, model.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = tuple(Parameter(n, tuple(p.shape), 0) for n, p in model.named_parameters())
    objective = Objective(model, parameters)
    batch = Rows(toys.tokens(4), objective.model).batch(range(4))
    example_gradients(objective, objective.flatten(), batch)
    assert model.config._attn_implementation == attention
    assert model.training == training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
