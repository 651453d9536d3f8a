"""Rows that a sampler draws unequally often: `expected` against really leaving rows out, over the sampler's seeds."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import WeightedRandomSampler
from transformers import Trainer, set_seed

from hf_prune import TrajectoryCallback, add_influence
from tests import toys

STEPS, BATCH, SEEDS = 100, 8, 12
RATES = {"sgd": 0.05, "adamw_torch": 2e-3}
RARE, COMMON = 6, 90


@pytest.fixture(scope="module")
def rows():
    full = toys.vectors(400, classes=2, noise=2.0)
    labels = np.array(full["labels"])
    chosen = np.concatenate([np.flatnonzero(labels == 1)[:RARE], np.flatnonzero(labels == 0)[:COMMON]])
    return full.select(np.sort(chosen))


def sampling(rows) -> torch.Tensor:
    labels = np.array(rows["labels"])
    return torch.tensor(1.0 / np.bincount(labels)[labels])


class Weighted(Trainer):
    def _get_train_sampler(self, *args, **kwargs):
        generator = torch.Generator().manual_seed(7)
        return WeightedRandomSampler(sampling(self.train_dataset), len(self.train_dataset), generator=generator)


def logits_without(initial, rows, held_out, left_out: list[int], optim: str) -> torch.Tensor:
    """Held-out logits `(1 + rows, queries)` of networks trained on all rows and without each, over sampler seeds."""
    x, y, weights = torch.tensor(rows["x"][:]), torch.tensor(rows["labels"][:]), sampling(rows)
    queries, out = torch.tensor(held_out["x"][:]), torch.tensor([-1, *left_out])

    def loss(parameters, batch, gone):
        losses = cross_entropy(functional_call(initial.net, parameters, (x[batch],)), y[batch], reduction="none")
        return (losses * (batch != gone)).mean()

    total = torch.zeros(len(out), len(queries), 2)
    for seed in range(SEEDS):
        parameters, _ = stack_module_state([initial.net] * len(out))
        parameters = {name: value.detach().clone() for name, value in parameters.items()}
        make = torch.optim.SGD if optim == "sgd" else torch.optim.AdamW
        optimizer = make(parameters.values(), lr=RATES[optim], weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        batches = torch.multinomial(weights, STEPS * BATCH, True, generator=generator).view(STEPS, BATCH)
        for batch in batches:
            gradients = vmap(grad(loss), (0, None, 0))(parameters, batch, out)
            for name, value in parameters.items():
                value.grad = gradients[name]
            optimizer.step()
        total += vmap(lambda own: functional_call(initial.net, own, (queries,)))(parameters) / SEEDS
    return total.flatten(1)


@pytest.mark.parametrize("optim", RATES)
def test_expected_counts_rows_as_often_as_they_are_drawn(rows, tmp_path: Path, optim: str):
    held_out = toys.vectors(40, seed=1, classes=2, noise=2.0)
    set_seed(0)
    model = toys.Mlp(classes=2)
    initial = copy.deepcopy(model)
    arguments = toys.arguments(
        tmp_path / "out",
        max_steps=STEPS,
        optim=optim,
        learning_rate=RATES[optim],
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    recorder = TrajectoryCallback(tmp_path / "t", window=1.0)
    Weighted(model, arguments, train_dataset=rows, callbacks=[recorder]).train()

    labels = np.array(rows["labels"])
    asked = [*np.flatnonzero(labels == 1), *np.flatnonzero(labels == 0)[:12]]
    found = logits_without(initial, rows, held_out, [int(row) for row in asked], optim)
    truth = (found[1:] - found[0]).square().mean(1).sqrt().numpy()
    for engine in ("dense", "projected"):
        scored = add_influence(
            rows, tmp_path / "t", model=model, eval_dataset=held_out, mode="expected", engine=engine, directions=64
        )
        norm = np.array(scored["influence_norm"])[asked]
        assert np.corrcoef(norm, truth)[0, 1] > 0.9
