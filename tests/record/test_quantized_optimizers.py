"""AdamW as bitsandbytes and torchao have it: its second moment is read as it is kept, paged or in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.optimizers import ADJOINTS, adjoint_for, optimizer_name
from hf_prune.record.support import describe_optimizer, inner_optimizer
from hf_prune.trajectory import Trajectory
from tests import toys

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional integration")
SIZE = 8192


def trained(make: Any, steps: int = 12) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    """A run whose gradients' sizes differ tenfold among entries."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(SIZE, generator=generator))
    scales = torch.rand(SIZE, generator=generator) + 0.1
    optimizer = make([parameter])
    passed = [parameter.detach().clone()]
    for _ in range(steps):
        parameter.grad = (torch.randn(SIZE, generator=generator) + 0.5) * scales
        optimizer.step()
        passed.append(parameter.detach().clone())
    return optimizer, passed


def moments(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    name = optimizer_name(optimizer)
    assert name is not None
    moment = ADJOINTS[name].second_moment_of(next(iter(optimizer.state.values())))
    assert moment is not None
    return moment


@pytest.mark.parametrize("kind", ["AdamW", "PagedAdamW32bit", "AdamW32bit", "PagedAdamW"])
def test_in_32_bits_the_update_and_its_second_moment_are_torchs(kind: str) -> None:
    """So that the adjoint of torch's AdamW, which central differences prove, is that of this one."""
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-6}
    truth, expected = trained(lambda params: torch.optim.AdamW(params, **settings))
    optimizer, passed = trained(lambda params: getattr(bnb.optim, kind)(params, **settings))
    for own, other in zip(passed, expected, strict=True):
        assert torch.allclose(own, other, rtol=1e-5, atol=1e-6)
    assert torch.allclose(moments(optimizer), moments(truth), rtol=1e-4)
    assert type(adjoint_for(describe_optimizer(inner_optimizer(optimizer)), [SIZE], [0])).__base__ is type(
        adjoint_for(describe_optimizer(inner_optimizer(truth)), [SIZE], [0])
    )
    described = [adjoint_for(describe_optimizer(inner_optimizer(one)), [SIZE], [0]) for one in (optimizer, truth)]
    A = torch.randn(3, SIZE, dtype=torch.float64)
    found = []
    for adjoint in described:
        own, M = adjoint.start(A.clone())
        C = adjoint.step_adjoint_(own, M, (1e-2,), moments(truth).double().sqrt() + 1e-6, 3)
        adjoint.decay_adjoint_(own, C, (1e-2,))
        found.append((own, M, C))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["AdamW8bit", "PagedAdamW8bit"])
def test_the_second_moment_in_8_bits_is_that_of_torch_but_for_rounding(kind: str) -> None:
    truth, _ = trained(lambda params: torch.optim.AdamW(params, lr=1e-2))
    optimizer, _ = trained(lambda params: getattr(bnb.optim, kind)(params, lr=1e-2))
    assert next(iter(optimizer.state.values()))["state2"].dtype == torch.uint8
    described = describe_optimizer(inner_optimizer(optimizer))
    assert described["name"] == "bitsandbytes.AdamW8bit"
    assert not adjoint_for(described, [SIZE], [0]).follows_second_moment
    ratios = moments(optimizer) / moments(truth)
    assert float((ratios - 1).abs().median()) < 0.05
    assert 0.8 < float(ratios.min()) < float(ratios.max()) < 1.25


def influence(optim: str, directory: Path) -> tuple[Trajectory, np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    rows, model = toys.vectors(64, noise=2.0), toys.Mlp(hidden=640)  # layers of fewer entries stay in float32
    callback = TrajectoryCallback(directory / "t", snapshots_per_epoch=2)
    toys.train(
        model,
        rows,
        directory / "out",
        [callback],
        optim=optim,
        num_train_epochs=10,
        learning_rate=1e-3,
        weight_decay=0.01,
    )
    trajectory, held_out = Trajectory.open(directory / "t"), toys.vectors(32, seed=1, noise=2.0)
    scored = add_influence(
        rows,
        trajectory,
        model=model,
        eval_dataset=held_out,
        directions=8,
        curvature="gauss-newton",
        engine="projected",
    )
    return trajectory, np.array(scored["influence"]), np.array(scored["influence_eval_loss"])


@pytest.mark.parametrize(
    ("optim", "name", "allowed"),
    [
        ("paged_adamw_32bit", "bitsandbytes.AdamW32bit", 1e-4),
        ("adamw_8bit", "bitsandbytes.AdamW8bit", 0.01),
        ("paged_adamw_8bit", "bitsandbytes.AdamW8bit", 0.01),
        ("adamw_torch_8bit", "torchao.AdamW8bit", 0.01),
    ],
)
def test_influence_is_that_of_the_same_run_with_torchs_adamw(
    optim: str, name: str, allowed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "torchao" in name:
        pytest.importorskip("torchao", reason="torchao is an optional integration")
        # it would compile the same update for a minute
        monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    whole, *expected = influence("adamw_torch", tmp_path / "whole")
    trajectory, *found = influence(optim, tmp_path / "own")
    assert (trajectory.manifest.optimizer["name"], whole.manifest.optimizer["name"]) == (name, "AdamW")
    for own, truth in zip(found, expected, strict=True):
        assert np.linalg.norm(own - truth) <= allowed * np.linalg.norm(truth)
