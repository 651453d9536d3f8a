"""The factors of a loss in its logits: together they are its gradient and its Hessian."""

from __future__ import annotations

import pytest
import torch

from hf_prune.influence.sketch.logit_factors import (
    MOST_FACTORS,
    TRACE_TOLERANCE,
    LogitFactor,
    logit_factors,
    random_draws,
)
from hf_prune.model.batch import Batch
from hf_prune.model.losses import CAUSAL_CROSS_ENTROPY, CROSS_ENTROPY, ExampleLoss

B = 6


def made(loss: ExampleLoss, logits: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> list[LogitFactor]:
    batch = Batch({}, labels)
    return logit_factors(loss, logits, batch, random_draws(batch, torch.Generator().manual_seed(seed)))


def gradient_of(factors: list[LogitFactor]) -> torch.Tensor:
    return sum(torch.einsum("b,b...->b...", factor.gradient, factor.cotangents) for factor in factors)


def curvature_of(factors: list[LogitFactor]) -> torch.Tensor:
    flat = [(factor.curvature, factor.cotangents.flatten(1)) for factor in factors]
    return sum(torch.einsum("b,bi,bj->bij", c, u, u) for c, u in flat)


def hessian_of(logits: torch.Tensor) -> torch.Tensor:
    chances = logits.softmax(1)
    return torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]


def drawn(classes: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(B, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(0, classes, (B,), generator=generator)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_factors_are_the_losses_gradient(classes: int):
    logits, labels = drawn(classes)
    truth = logits.softmax(1) - torch.nn.functional.one_hot(labels, classes)
    assert torch.allclose(gradient_of(made(CROSS_ENTROPY, logits, labels)), truth)


@pytest.mark.parametrize(("classes", "count"), [(2, 1), (3, 3), (4, 4)])
def test_few_classes_have_their_hessian_by_eigenvectors(classes: int, count: int):
    logits, labels = drawn(classes, 0.1)
    factors = made(CROSS_ENTROPY, logits, labels)
    truth = hessian_of(logits)
    assert len(factors) == count
    assert torch.allclose(curvature_of(factors), truth, atol=1e-9)


def test_small_eigenvalues_are_left_out_up_to_their_share_of_the_trace():
    logits = torch.tensor([[5.0, 4.9, 0.0, -1.0]], dtype=torch.float64).expand(B, 4)
    factors = made(CROSS_ENTROPY, logits, torch.zeros(B, dtype=torch.long))
    values = torch.linalg.eigvalsh(hessian_of(logits))[0].flip(0)
    held = values.cumsum(0) / values.sum()
    needed = int((held < 1 - TRACE_TOLERANCE).sum()) + 1
    assert needed == 1
    assert len(factors) == 1 + needed
    assert torch.allclose(factors[1].curvature, values[0].expand(B))


def test_a_single_factor_stands_for_both_only_where_gradient_and_curvature_agree():
    # of three classes one is impossible: the Hessian has one direction, the gradient of the impossible label another
    logits = torch.tensor([[0.3, -0.2, -40.0]], dtype=torch.float64).expand(2, 3)
    assert len(made(CROSS_ENTROPY, logits, torch.tensor([0, 1]))) == 1
    factors = made(CROSS_ENTROPY, logits, torch.tensor([0, 2]))
    assert len(factors) == 2
    truth = logits.softmax(1) - torch.nn.functional.one_hot(torch.tensor([0, 2]), 3)
    assert torch.allclose(gradient_of(factors), truth)
    assert torch.allclose(curvature_of(factors), hessian_of(logits), atol=1e-9)


def test_one_factor_is_not_enough_where_only_the_gradient_lies_along_it():
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    factors = made(CROSS_ENTROPY, logits, torch.tensor([0]))  # the gradient is an eigenvector of the Hessian
    assert len(factors) == 3
    assert torch.allclose(curvature_of(factors), hessian_of(logits), atol=1e-9)


@pytest.mark.parametrize("rows", [1, 200])
def test_what_may_lie_outside_of_the_one_factor_is_a_share_of_the_batch(rows: int):
    logits = torch.tensor([[0.0, 0.0, -8.1]], dtype=torch.float64).expand(rows, 3)  # a third class of chance 1.5e-4
    assert len(made(CROSS_ENTROPY, logits, torch.zeros(rows, dtype=torch.long))) == 1
    nearer = torch.tensor([[0.0, 0.0, -5.0]], dtype=torch.float64).expand(rows, 3)
    assert len(made(CROSS_ENTROPY, nearer, torch.zeros(rows, dtype=torch.long))) > 1


def test_of_many_alike_eigenvalues_a_random_sum_stands_for_the_rest():
    logits = drawn(10, 0.1)[0][:1].expand(4000, 10)
    factors = made(CROSS_ENTROPY, logits, torch.zeros(4000, dtype=torch.long))
    assert len(factors) == MOST_FACTORS + 1
    truth, curvature = hessian_of(logits[:1])[0], curvature_of(factors)
    assert float((curvature.mean(0) - truth).norm() / truth.norm()) < 0.05
    # the largest are not drawn
    values, vectors = torch.linalg.eigh(truth)
    for rank in range(1, MOST_FACTORS):
        one = torch.einsum("i,bij,j->b", vectors[:, -rank], curvature, vectors[:, -rank])
        assert torch.allclose(one, values[-rank].expand(4000), atol=1e-9)


def test_labels_are_drawn_for_tokens_and_ignored_ones_have_none():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 70, dtype=torch.float64, generator=generator)
    labels = torch.tensor([[3, 9, -100, 4, 60], [1, 2, 3, 4, 5]])
    factors = made(CAUSAL_CROSS_ENTROPY, logits, labels)
    slope = torch.func.grad(lambda z: CAUSAL_CROSS_ENTROPY.losses(z, labels).sum())(logits)
    assert torch.allclose(gradient_of(factors), slope)
    u = factors[1].cotangents
    assert torch.equal(factors[1].curvature, torch.ones(2, dtype=torch.float64))
    assert not u[:, -1].any(), "nothing follows the last token"
    assert not u[0, 1].any(), "the next token is ignored"
    chances = logits.softmax(-1)
    items = torch.tensor([3.0, 4.0]).double()
    for row, place in ((0, 0), (0, 2), (1, 0), (1, 3)):
        left = chances[row, place] - u[row, place] * items[row] ** 0.5
        assert float(left.max()) == pytest.approx(1.0)
        assert float(left.sum()) == pytest.approx(1.0)


def test_a_wide_loss_of_unknown_form_has_its_gradient_for_both():
    wide = ExampleLoss(lambda logits, labels: (logits - labels).square().mean(1))
    logits, labels = torch.randn(3, 80), torch.randn(3, 80)
    (only,) = made(wide, logits, labels)
    assert torch.allclose(only.cotangents, 2 * (logits - labels) / 80, atol=1e-6)
    assert torch.equal(only.gradient, torch.ones(3))
    assert torch.equal(only.curvature, torch.ones(3))
