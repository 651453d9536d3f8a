"""The benchmark's many trainings at once are those that the Trainer's own pieces make one by one."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
ensemble = pytest.importorskip("ensemble", reason="the benchmarks are not beside the tests")

STEPS, SIZES = 12, (5, 4, 3)


def test_every_run_is_that_of_adamw_with_clipping_and_decay():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 5, generator=generator), torch.randint(0, 3, (70,), generator=generator)
    subsets, seeds = [np.arange(70), np.arange(70)], [3, 4]
    found = ensemble.train_together(x, y, subsets, seeds, SIZES, steps=STEPS, learning_rate=0.05, batch_size=32)
    for run, (place, seed) in enumerate((place, seed) for place in range(2) for seed in seeds):
        torch.manual_seed(seed)
        model = ensemble.Mlp(*SIZES)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(optimizer, 2, STEPS)
        batches = ensemble._batches(subsets[place], np.random.default_rng([seed, place]), 32)
        for _ in range(STEPS):
            batch = torch.from_numpy(next(batches))
            optimizer.zero_grad()
            model(x[batch], y[batch])["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        for together, alone in zip(found, model.parameters(), strict=True):
            expected = alone.mT if alone.ndim == 2 else alone[None]
            torch.testing.assert_close(together[run], expected.detach(), rtol=1e-4, atol=1e-6)
