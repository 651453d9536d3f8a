"""The last layer's influence and the ICLR 2023 method, against the exact inverse and on real runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_prune import TrajectoryCallback, UnsupportedError, prune
from hf_prune.scores import add_scores
from hf_prune.scores.last_layer import DAMPING, Recursion, influences
from hf_prune.selection.annealing import anneal
from tests import toys
from tests.selection.scored import scored


def test_the_recursion_tends_to_the_exact_inverse_hessian():
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(60, 3, generator=generator), torch.ones(60, 1)], dim=1)
    p, y = torch.randn(60, 3, generator=generator).softmax(dim=1), torch.arange(60) % 3

    def loss(weight: torch.Tensor) -> torch.Tensor:  # of a linear layer whose probabilities at 0 are p
        return torch.nn.functional.cross_entropy(p.log() + x @ weight.view(3, 4).T, y)

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(12))
    errors = p - torch.nn.functional.one_hot(y, 3)
    gradients = (errors[:, :, None] * x[:, None, :]).flatten(1)
    truth = torch.linalg.solve(hessian + DAMPING * torch.eye(12), gradients.T).T / 60
    found = torch.tensor(influences(x, p, y, Recursion(4000, 1, 256), seed=0))
    assert (found - truth).norm() < 0.1 * truth.norm()


@pytest.mark.parametrize("make", [toys.Mlp, toys.bert, toys.vit])
def test_the_method_runs_from_a_recorded_run_to_the_kept_rows(make, tmp_path: Path):
    torch.manual_seed(0)
    rows = {toys.Mlp: toys.vectors, toys.bert: toys.tokens, toys.vit: toys.images}[make](40)
    model = make()
    callback = TrajectoryCallback(tmp_path / "t", row_statistics=True)
    toys.train(model, rows, tmp_path / "out", [callback])
    found = add_scores(rows, tmp_path / "t", model=model, last_layer=True)
    vectors = np.array(found["last_layer_influence"])
    layer = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert vectors.shape == (40, toys.CLASSES * (layer.in_features + 1))
    again = add_scores(rows, tmp_path / "t", model=model, last_layer=True)
    assert again._fingerprint == found._fingerprint
    plain = scored(40, k=8)
    columns = {name: plain[name] for name in ("influence", "influence_norm")}
    for name, values in columns.items():
        found = found.add_column(name, values)
    pruned = prune(found, 0.5, method="iclr2023")
    assert len(pruned) == 20
    gone = np.setdiff1d(np.arange(40), pruned.selection.keep_indices)
    drawn = [np.random.default_rng(seed).permutation(40)[:20] for seed in range(50)]
    assert np.linalg.norm(vectors[gone].sum(0)) < min(np.linalg.norm(vectors[part].sum(0)) for part in drawn)


@pytest.mark.parametrize("removed", [0, 1, 39, 40])
def test_annealing_removes_as_many_as_asked(removed: int):
    mask, length = anneal(np.random.default_rng(0).normal(size=(40, 5)), removed, 0)
    assert mask.sum() == removed
    assert np.isfinite(length)


def test_what_cannot_be_done_is_refused_in_words(tmp_path: Path):
    torch.manual_seed(0)
    rows, model = toys.vectors(20), toys.Cubed()
    callback = TrajectoryCallback(tmp_path / "t", row_statistics=True)
    toys.train(model, rows, tmp_path / "out", [callback])
    with pytest.raises(UnsupportedError, match="No linear layer of Cubed"):
        add_scores(rows, tmp_path / "t", model=model, last_layer=True)
    with pytest.raises(ValueError, match="needs the trained model"):
        add_scores(rows, tmp_path / "t", last_layer=True)
    with pytest.raises(ValueError, match="last_layer=True"):
        prune(scored(), 0.5, method="iclr2023")
