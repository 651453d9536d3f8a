"""The fast retraining of the studies of selection."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
curves = pytest.importorskip("curves", reason="the benchmarks are not beside the tests")
study_tasks = pytest.importorskip("study_tasks", reason="the benchmarks are not beside the tests")
studies = pytest.importorskip("studies")


def _task():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 6)).astype("float32")
    parts = [study_tasks.Arrays(x[i::3], (3 * x[i::3, 0]).round().astype("int64") % 4) for i in range(3)]
    return study_tasks.Task("drawn", parts[0], *parts, lambda: study_tasks.mlp(6, 5, 7, 4), 3, 0.01, 8)


def test_networks_trained_together_are_those_trained_alone():
    task = _task()
    subsets = [np.arange(20), np.arange(5, 25), np.arange(10, 30)]
    together = studies.train(task, subsets, [0, 1, 2])
    batches = studies._batches(subsets, [0, 1, 2], task.batch, 9)
    x, y = torch.tensor(task.train.x), torch.tensor(task.train.y)
    for number, net in enumerate(together):
        torch.manual_seed(number)
        alone = task.net()
        studies._train_net(alone, x, y, [batch[number] for batch in batches], task.lr)
        for ours, theirs in zip(net.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_an_epoch_sees_every_row_once():
    batches = studies._batches([np.arange(20), np.arange(40, 60)], [0, 1], 8, 6)
    assert [batch.shape[1] for batch in batches] == [8, 8, 4, 8, 8, 4]
    for epoch in (batches[:3], batches[3:]):
        rows = torch.cat(epoch, dim=1).sort(dim=1).values
        assert torch.equal(rows, torch.stack([torch.arange(20), torch.arange(40, 60)]))


def test_test_rows_are_the_same_for_every_seed_and_no_others():
    first, second = (study_tasks.digits_task(seed) for seed in (0, 1))
    assert np.array_equal(first.test.x, second.test.x)
    assert not np.array_equal(first.train.x, second.train.x)
    rows = np.concatenate([part.x for part in (first.train, first.held_out, first.dev, first.test)])
    assert len(rows) == 1797


@pytest.mark.parametrize(("of_seeds", "of_rows"), [(0.02, 0.2), (0.2, 0.2), (0.2, 0.0)])
def test_the_interval_over_seeds_and_rows_covers_the_truth(of_seeds: float, of_rows: float):
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        table = of_seeds * rng.normal(size=(8, 1)) + of_rows * rng.normal(size=(1, 50)) + rng.normal(size=(8, 50))
        inside += abs(table.mean()) < curves.half_width_of_both(table)
    assert 0.93 < inside / 400 <= 0.995
