"""Buckets: as good as one program, because the residual is carried from bucket to bucket."""

from __future__ import annotations

import numpy as np
import pytest

from hf_prune._core.config import SelectionConfig
from hf_prune.selection import buckets, difficulty, select
from tests.selection.scored import problem, scored


def _residual(data, dropped: np.ndarray) -> float:
    return float(np.linalg.norm(data.centred_sums(dropped[None])[0, : data.solver]))


def _drop(data, number: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    cost = difficulty.cost(difficulty.choose(SelectionConfig(keep=0.5, difficulty=0.7)), data.norm, rng)
    return buckets.drop_rows(data, cost, np.array([data.n // 2]), number, rng)[0]


def test_buckets_carry_the_residual(monkeypatch: pytest.MonkeyPatch):
    data = problem(False, rows=1200)
    one, carried = _residual(data, _drop(data, 1)), _residual(data, _drop(data, 10))
    monkeypatch.setattr(buckets, "PASSES", 0)
    independent = _residual(data, _drop(data, 10))
    assert carried <= 1.1 * one
    assert independent > 5 * carried


def test_buckets_are_as_good_as_one_program_on_directions_they_do_not_see():
    dataset = scored(1500, k=32)
    one, ten = (select(dataset, 0.5, difficulty=None, buckets=number).certificate for number in (1, 8))
    assert ten.solver_residual <= 1.1 * max(one.solver_residual, 0.01 * one.random_solver_residual.mean)
    assert ten.audit_residual <= 1.3 * one.audit_residual


def test_what_herding_leaves_does_not_add_up_over_buckets(monkeypatch: pytest.MonkeyPatch):
    dataset = scored(4000, k=32)
    settled = select(dataset, 0.5, buckets=16)
    monkeypatch.setattr(buckets, "ROUNDS", 0)
    independent = select(dataset, 0.5, buckets=16)
    for part in ("audit_residual", "solver_residual"):
        assert getattr(settled.certificate, part) < 0.5 * getattr(independent.certificate, part)
    changed = np.setdiff1d(settled.keep_indices, independent.keep_indices)
    assert 0 < len(changed) < 0.2 * len(dataset)
    label = np.array(dataset["label"])
    assert (np.bincount(label[settled.keep_indices]) == np.bincount(label[independent.keep_indices])).all()


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_every_bucket_has_an_exact_balance_however_few_rows_go_or_stay(share):
    data = problem(False, rows=1200)
    cost = np.random.default_rng(0).random(1200)
    dropped, inexact = buckets.drop_rows(data, cost, np.array([int(1200 * share)]), 10, np.random.default_rng(0))
    assert dropped.sum() == int(1200 * share)
    assert inexact == 0


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_buckets_keep_counts_and_class_shares(keep):
    label = np.repeat([0, 1, 2], [700, 250, 50])
    selection = select(scored(1000, k=8, label=label), keep, buckets=7)
    kept = np.bincount(label[selection.keep_indices])
    assert kept.tolist() == [700 * keep, 250 * keep, 50 * keep]
    assert selection.resolved["buckets"] == 7


def test_a_partition_has_every_row_once_and_even_classes():
    codes = np.repeat([0, 1, 2], [100, 31, 4])
    parts = buckets.partition(codes, 4, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(135))
    counts = np.stack([np.bincount(codes[part], minlength=3) for part in parts])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


def test_large_datasets_get_buckets_by_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(buckets, "AUTO_ABOVE", 500)
    monkeypatch.setattr(buckets, "AUTO_ROWS", 300)
    assert select(scored(500), 0.5).resolved["buckets"] == 1
    assert select(scored(700), 0.5).resolved["buckets"] == 3


def test_too_many_buckets_are_refused_with_the_most_that_go():
    with pytest.raises(ValueError, match="pass at most 6, or 'auto'"):
        select(scored(400), 0.5, buckets=50)
    assert select(scored(400), 0.5, buckets=6).certificate.kept == 200
