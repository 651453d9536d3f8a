"""Clipping and removal, formula by formula, against gradients that are summed and clipped anew."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_prune.influence.clipping import Clip, clip_factor, leave_one_out
from hf_prune.influence.removal import Removal

K, P, B = 3, 7, 6


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def clipped(gradient: torch.Tensor, max_norm: float, elsewhere: float = 0.0) -> torch.Tensor:
    """A gradient as torch leaves it, where parameters that are not recorded have one of length `elsewhere`."""
    recorded, other = torch.nn.Parameter(torch.zeros_like(gradient)), torch.nn.Parameter(torch.zeros(1).double())
    recorded.grad, other.grad = gradient.clone(), torch.full((1,), elsewhere).double()
    torch.nn.utils.clip_grad_norm_([recorded, other], max_norm or float("inf"))
    return recorded.grad


class Step:
    """A step's visits with their gradients, one by one, in groups that each have a denominator."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.gradients = normal(B, P, seed=seed) * 10 ** -(2 * torch.rand(1, generator=generator).double())
        self.weights = torch.rand(B, generator=generator).double() + 0.1
        self.groups = torch.randint(0, 3, (B,), generator=generator)
        self.growth = 1 + torch.rand(B, generator=generator).double()
        self.same = (self.groups[:, None] == self.groups).double()
        self.removal = Removal(self.weights, self.growth, self.same)
        self.whole = self.weights @ self.gradients

    def without(self, visit: int) -> torch.Tensor:
        """The gradient without a visit: the others of its group weigh more."""
        total = torch.zeros(P, dtype=torch.float64)
        for other in range(B):
            if other != visit:
                more = self.growth[visit] if self.groups[other] == self.groups[visit] else 1.0
                total += more * self.weights[other] * self.gradients[other]
        return total

    def along(self) -> torch.Tensor:
        parts = (self.same * self.weights) @ self.gradients
        own = self.gradients
        return torch.stack([own @ self.whole, own.square().sum(1), (own * parts).sum(1)])


@given(norm=st.floats(0, 1e4), max_norm=st.floats(0, 1e3))
def test_the_factor_is_torchs(norm: float, max_norm: float):
    gradient = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
    found = clip_factor(norm, max_norm) * gradient
    assert torch.allclose(found, clipped(gradient, max_norm), rtol=1e-12, atol=0)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), max_norm=st.floats(0.05, 1.0), elsewhere=st.floats(0, 3))
def test_the_adjoint_of_clipping_is_the_transposed_derivative(seed: int, max_norm: float, elsewhere: float):
    g, u, C = 2 * normal(P, seed=seed), normal(P, seed=seed + 1), normal(K, P, seed=seed + 2)
    h = 1e-6
    moved = (clipped(g + h * u, max_norm, elsewhere) - clipped(g - h * u, max_norm, elsewhere)) / (2 * h)
    norm = float((g @ g + elsewhere**2) ** 0.5)
    assume(norm > 1.01 * max_norm)
    assert torch.allclose(Clip(g, norm, max_norm).adjoint(C) @ u, C @ moved, rtol=1e-6, atol=1e-8)


def test_a_longer_recomputed_gradient_is_projected_and_no_more():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    along = Clip(g, 1.0, 0.5).adjoint(g[None])[0] / clip_factor(1.0, 0.5)
    assert 0 <= float(along @ g) < 1e-5 * float(g @ g)


@given(seed=st.integers(0, 10**6))
def test_a_removal_is_the_change_of_the_summed_gradient(seed: int):
    step, C = Step(seed), normal(K, P, seed=seed + 1)
    changes = torch.stack([step.without(visit) - step.whole for visit in range(B)])
    assert torch.allclose(step.removal.along(C @ step.gradients.T), C @ changes.T, atol=1e-10)
    along = step.along()
    assert torch.allclose(step.removal.squares(along[2], along[1]), changes.square().sum(1), atol=1e-10)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    max_norm=st.sampled_from([0.0, 0.05, 0.5, 2.0, 20.0]),
    elsewhere=st.sampled_from([0.0, 0.7]),
)
def test_leaving_one_out_is_clipping_the_sum_of_the_others(seed: int, max_norm: float, elsewhere: float):
    step, C = Step(seed), normal(K, P, seed=seed + 1)
    norm = float((step.whole @ step.whole + elsewhere**2) ** 0.5)
    before = clipped(step.whole, max_norm, elsewhere)
    after = torch.stack([clipped(step.without(visit), max_norm, elsewhere) for visit in range(B)])
    truth = C @ (after - before).T
    if max_norm:
        found = leave_one_out(norm, max_norm, C @ step.whole, C @ step.gradients.T, step.along(), step.removal)
        assert torch.allclose(found, truth, atol=1e-9)
    if 0 < max_norm < norm:
        clip = Clip(step.whole, norm, max_norm)
        dots = clip.adjoint(C) @ step.gradients.T
        assert torch.allclose(clip.leave_one_out(C, dots, step.along(), step.removal), truth, atol=1e-9)


def test_what_is_left_of_a_gradient_may_be_nothing():
    step = Step(0)
    step.weights[1:] = 0
    along = torch.stack([step.gradients @ step.gradients[0] * step.weights[0], step.gradients.square().sum(1)])
    whole = step.weights[0] * step.gradients[0]
    removal = Removal(step.weights, torch.ones(B).double(), torch.ones(B, B).double())
    known = torch.stack([*along, along[0]])
    slope, dots = whole[None] @ whole, whole[None] @ step.gradients.T
    found = leave_one_out(float(whole.norm()), 0.1, slope, dots, known, removal)
    assert found[0, 0] == pytest.approx(-float(clipped(whole, 0.1) @ whole), rel=1e-6)
