"""Each adjoint is the transpose of one update, for any hyper-parameters: against torch's optimizers and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.errors import UnsupportedError
from hf_prune.optimizers import GroupLayout, OptimizerAdjoint, adjoint_for
from hf_prune.testing import check_adjoint

SIZES, GROUPS = [4, 3, 2], [1, 0, 1]
P, K = sum(SIZES), 3
SHARES = st.floats(0, 0.95)
# The Trainer decays one of its groups and not the other.
DECAYS = st.one_of(st.just(0.0), SHARES)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(values: tuple[float, ...]) -> torch.Tensor:
    """One value a group, entry by entry."""
    entries = [values[g] for g, size in zip(GROUPS, SIZES, strict=True) for _ in range(size)]
    return torch.tensor(entries, dtype=torch.float64)


def adjoint(name: str, groups: list[dict[str, Any]]) -> OptimizerAdjoint:
    return adjoint_for({"name": name, "groups": groups}, SIZES, GROUPS)


@st.composite
def sgd(draw: st.DrawFn) -> dict[str, Any]:
    momentum, nesterov = draw(st.one_of(st.just(0.0), st.floats(0.1, 0.99))), draw(st.booleans())
    nesterov = nesterov and momentum > 0
    dampening = 0.0 if nesterov else draw(SHARES)
    return {"momentum": momentum, "nesterov": nesterov, "dampening": dampening, "weight_decay": draw(DECAYS)}


@settings(max_examples=25)
@given(options=sgd())
def test_the_adjoint_of_sgd_is_its_derivative_whatever_its_options(options: dict[str, Any]):
    check_adjoint(lambda groups: torch.optim.SGD(groups, lr=0.1, **options), steps=4)


@settings(max_examples=15)
@given(
    betas=st.tuples(st.floats(0, 0.95), st.floats(0.2, 0.999)),
    eps=st.sampled_from([1e-8, 1e-3, 0.1]),
    decay=SHARES,
    decoupled=st.booleans(),
    amsgrad=st.booleans(),
)
def test_the_adjoint_of_adam_is_its_derivative_whatever_its_options(
    betas: tuple[float, float], eps: float, decay: float, decoupled: bool, amsgrad: bool
):
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    options = {"betas": betas, "eps": eps, "weight_decay": decay, "amsgrad": amsgrad}
    check_adjoint(lambda groups: kind(groups, lr=0.1, **options), steps=4, tolerance=1e-5)


@settings(max_examples=40)
@given(pair=st.tuples(sgd(), sgd()), seed=st.integers(0, 1000), rates=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_shifted_gradients_move_the_end_as_the_transpose_says(
    pair: tuple[dict[str, Any], dict[str, Any]], seed: int, rates: tuple[float, float]
):
    """`<A u, v> = <u, A^T v>` for the map A from all steps' gradients to the end of a run without curvature."""
    gradients, shifts, v = normal(5, P, seed=seed), normal(5, P, seed=seed + 1), normal(K, P, seed=seed + 2)

    def end(given: torch.Tensor) -> torch.Tensor:
        tensors = [torch.nn.Parameter(part.clone()) for part in normal(P, seed=seed + 3).split(SIZES)]
        groups = [
            {"params": [tensor for tensor, own in zip(tensors, GROUPS, strict=True) if own == group], **options}
            for group, options in enumerate(pair)
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        for t, gradient in enumerate(given):
            for tensor, part in zip(tensors, gradient.split(SIZES), strict=True):
                tensor.grad = part.clone()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate / (t + 1)
            optimizer.step()
        return torch.cat([tensor.detach() for tensor in tensors])

    found = adjoint("SGD", list(pair))
    A, M = found.start(v.clone())
    right = torch.zeros(K, dtype=torch.float64)
    for t in reversed(range(5)):
        own = tuple(rate / (t + 1) for rate in rates)
        C = found.step_adjoint_(A, M, own, None, t)
        found.decay_adjoint_(A, C, own)
        right += C @ shifts[t]
    left = v @ (end(gradients + shifts) - end(gradients))
    assert torch.allclose(left, right, rtol=1e-9, atol=1e-9)


@st.composite
def adam(draw: st.DrawFn) -> dict[str, Any]:
    betas = draw(st.tuples(st.floats(0.1, 0.95), st.floats(0.2, 0.99)))
    return {"betas": betas, "eps": draw(st.sampled_from([1e-8, 1e-2])), "weight_decay": draw(DECAYS)}


@settings(max_examples=40)
@given(
    pair=st.tuples(adam(), adam()),
    name=st.sampled_from(["Adam", "AdamW"]),
    updates=st.integers(0, 5),
    rates=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 1000),
)
def test_adams_whole_state_goes_back_as_autograd_takes_it(
    pair: tuple[dict[str, Any], dict[str, Any]], name: str, updates: int, rates: tuple[float, float], seed: int
):
    b1, b2 = (spread(tuple(group["betas"][place] for group in pair)) for place in (0, 1))
    eps, decay = (spread(tuple(group[key] for group in pair)) for key in ("eps", "weight_decay"))
    h = spread(rates)
    theta, m, g = (normal(P, seed=seed + i) for i in range(3))
    v = normal(P, seed=seed + 3).square() + 0.1

    def update(theta: torch.Tensor, m: torch.Tensor, v: torch.Tensor, g: torch.Tensor):
        d = g + decay * theta if name == "Adam" else g
        m, v = b1 * m + (1 - b1) * d, b2 * v + (1 - b2) * d**2
        direction = m / (1 - b1 ** (updates + 1)) / ((v / (1 - b2 ** (updates + 1))).sqrt() + eps)
        kept = theta * (1 - h * decay) if name == "AdamW" else theta
        return kept - h * direction, m, v, direction

    (after, _, moment, direction), back = torch.func.vjp(update, theta, m, v, g)
    A, M, V = (normal(K, P, seed=seed + 4 + i) for i in range(3))
    asked = [back((*own, torch.zeros_like(theta))) for own in zip(A, M, V, strict=True)]
    truth = [torch.stack(rows) for rows in zip(*asked, strict=True)]

    found, layout = adjoint(name, list(pair)), GroupLayout(SIZES, GROUPS)
    divided_by = found.denominator(list(pair), layout, moment, updates)
    moved = found.direction(theta - after, [(rates, theta)])
    assert torch.allclose(moved, direction, rtol=1e-9, atol=1e-9)
    C = found.step_adjoint_(A, M, rates, divided_by, updates)
    C += found.second_moment_adjoint_(
        A, V, rates, divided_by, updates, direction=moved, gradient=g, theta=theta
    )  # A is still that after the step
    found.decay_adjoint_(A, C, rates)
    for own, wanted in zip((A, M, V, C), truth, strict=True):
        assert torch.allclose(own, wanted, rtol=1e-8, atol=1e-9)
    assert found.follows_second_moment
    assert found.decays_before_scaling == (name == "Adam" and bool(decay.any()))


def test_entries_that_never_had_a_gradient_pass_no_second_moment_on():
    found = adjoint("AdamW", [{"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}] * 2)
    V, still = torch.zeros(1, P).double(), torch.full((P,), 1e-8).double()
    more = found.second_moment_adjoint_(
        torch.ones(1, P).double(), V, (0.1, 0.1), still, 3,
        direction=torch.ones(P).double(), gradient=torch.ones(P).double(), theta=torch.ones(P).double(),
    )  # fmt: skip
    assert not V.any()
    assert not more.any()


def test_where_the_learning_rate_was_zero_there_is_no_direction():
    found = adjoint("AdamW", [{"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}] * 2)
    moved = found.direction(normal(P, seed=0), [((0.0, 0.5), normal(P, seed=1))])
    assert bool((moved[spread((1.0, 0.0)) > 0] == 0).all())
    assert bool((moved[spread((0.0, 1.0)) > 0] != 0).all())


def test_the_direction_is_the_mean_over_updates_weighted_by_their_rates():
    decay, rates = 0.1, (0.2, 0.5)
    found = adjoint("AdamW", [{"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": decay}] * 2)
    directions, theta = normal(2, P, seed=0), normal(P, seed=1)
    path = [theta]
    for rate, direction in zip(rates, directions, strict=True):
        path.append(path[-1] * (1 - rate * decay) - rate * direction)
    steps = [((rate, rate), before) for rate, before in zip(rates, path, strict=False)]
    truth = (rates[0] * directions[0] + rates[1] * directions[1]) / sum(rates)
    assert torch.allclose(found.direction(path[0] - path[-1], steps), truth, rtol=1e-9)


@settings(max_examples=20)
@given(options=adam(), seed=st.integers(0, 1000), scale=st.floats(0.1, 10), updates=st.integers(0, 4))
def test_scaled_cotangents_and_scaled_losses_scale_what_they_should(
    options: dict[str, Any], seed: int, scale: float, updates: int
):
    found, rates = adjoint("AdamW", [options] * 2), (0.1, 0.3)
    A, M = normal(K, P, seed=seed), normal(K, P, seed=seed + 1)
    D = normal(P, seed=seed + 2).abs() + 0.1

    def cotangents(A: torch.Tensor, M: torch.Tensor, rates: tuple[float, float], D: torch.Tensor | None):
        M = M.clone()
        return found.step_adjoint_(A.clone(), M, rates, D, updates), M

    C, before = cotangents(A, M, rates, D)
    # in the metric's own coordinates, as the sketches hold them
    root = D.sqrt()
    C_scaled, before_scaled = cotangents(A / root, M * root, rates, None)
    assert torch.allclose(C_scaled, C * root)
    assert torch.allclose(before_scaled, before * root)
    # a loss s times as large, whose denominator is too, moves the parameters as before
    assert torch.allclose(cotangents(A, M / scale, rates, scale * D)[0], C / scale)
    # s times the learning rate and 1/s times the query
    faster = (rates[0] * scale, rates[1] * scale)
    assert torch.allclose(cotangents(A / scale, M, faster, D)[0], C)


def test_values_are_spread_over_the_entries_of_their_group():
    layout = GroupLayout(SIZES, GROUPS)
    assert torch.equal(layout.spread([0.25, 0.5]), spread((0.25, 0.5)))
    same = layout.spread([0.25, 0.25])
    assert same.ndim == 0
    assert float(same) == 0.25
    assert same.dtype == torch.float64


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_amsgrad_holds_the_second_moment(name: str):
    groups = [{"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": flag} for flag in (False, True)]
    assert not adjoint(name, groups).follows_second_moment
    assert adjoint(name, groups[:1] * 2).follows_second_moment


def test_weight_decay_is_decoupled_by_the_class_or_by_the_option():
    plain = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.3}
    assert adjoint("Adam", [plain] * 2).decays_before_scaling
    assert not adjoint("AdamW", [plain] * 2).decays_before_scaling
    assert not adjoint("Adam", [plain | {"decoupled_weight_decay": True}] * 2).decays_before_scaling
    assert not adjoint("Adam", [plain | {"weight_decay": 0.0}] * 2).decays_before_scaling


def test_sgd_decays_in_its_own_units_and_has_no_second_moment():
    found = adjoint("SGD", [{"weight_decay": 0.1, "momentum": 0.9}] * 2)
    assert not found.decays_before_scaling
    assert not found.follows_second_moment


def test_one_group_that_is_maximized_is_refused():
    with pytest.raises(UnsupportedError, match="maximize=True has no adjoint"):
        adjoint("SGD", [{"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}])
