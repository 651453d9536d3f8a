"""Held-out rows that are a task of their own: the methods for it, and the warning that sends people there."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hf_prune.selection import select
from hf_prune.selection.pooling import PENALTIES, pooled
from hf_prune.selection.problem import read_problem
from tests.selection.scored import scored, with_target


def test_target_keeps_the_rows_whose_removal_hurts_most():
    dataset = scored()
    effect = np.array(dataset["influence_eval_loss"])
    kept = select(dataset, 100, method="target").keep_indices
    assert len(kept) == 100
    assert effect[kept].min() > np.delete(effect, kept).max()


def ridge_again(values: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, float]:
    """The pooled values with every hat matrix written out."""
    x = (features - features.mean(0)) / features.std(0)
    y = values - values.mean()
    found = []
    for penalty in PENALTIES:
        hat = x @ np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T)
        left = y - hat @ y
        found.append(((left**2).mean() / (1 - (np.trace(hat) + 1) / len(x)) ** 2, left))
    error, left = min(found, key=lambda pair: pair[0])
    share = max(0.0, 1 - error / (y**2).mean())
    return y - left + (1 - share) * left, share


@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_effects_are_pooled_as_ridge_regression_says(noise):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 6)) * [1, 5, 0.01, 1, 1, 1] + 3
    values = features @ rng.normal(size=6) + noise * rng.normal(size=300)
    dataset = scored(300, influence_eval_loss=values.astype("float32"))
    dataset = dataset.add_column("influence_features", features.astype("float32").tolist())
    problem = read_problem(dataset, "influence", None)
    truth, share = ridge_again(values, features)
    found = pooled(problem.eval_loss, problem.features)
    assert found.share == pytest.approx(share, abs=1e-3)
    np.testing.assert_allclose(found.values, truth, atol=2e-3 * np.abs(truth).max())
    kept = select(dataset, 100, method="target").keep_indices
    assert np.isin(np.argsort(-truth)[:90], kept).all()


def test_pooled_effects_find_the_rows_of_a_kind_better_than_single_ones():
    rng = np.random.default_rng(1)
    kind = rng.random(400) < 0.25
    features = rng.normal(size=(400, 8)) + 2 * np.outer(kind, rng.choice([-1, 1], 8))
    effect = (kind + 0.5 * rng.normal(size=400)).astype("float32")
    plain = scored(400, influence_eval_loss=effect)
    with_features = plain.add_column("influence_features", features.astype("float32").tolist())
    alone, together = (kind[select(d, int(kind.sum()), method="target").keep_indices] for d in (plain, with_features))
    assert together.mean() > alone.mean() + 0.08


def test_features_that_say_nothing_change_little():
    rng = np.random.default_rng(2)
    dataset = scored(400)
    noise = rng.normal(size=(400, 8)).astype("float32")
    alone, together = (
        set(select(d, 100, method="target").keep_indices)
        for d in (dataset, dataset.add_column("influence_features", noise.tolist()))
    )
    assert len(alone & together) >= 95


def test_equal_features_and_equal_effects_are_no_error():
    same = np.ones((400, 3), dtype="float32").tolist()
    dataset = scored(400).add_column("influence_features", same)
    assert set(select(dataset, 100, method="target").keep_indices) == set(
        select(scored(400), 100, method="target").keep_indices
    )
    flat = scored(400, influence_eval_loss=np.zeros(400, dtype="float32")).add_column("influence_features", same)
    assert len(select(flat, 100, method="target").keep_indices) == 100


def test_target_needs_held_out_rows():
    with pytest.raises(ValueError, match="score with `add_influence"):
        select(scored().remove_columns("influence_eval_loss"), 0.5, method="target")


def test_less_keeps_the_rows_of_the_largest_column():
    dataset = with_target(scored())
    kept = select(dataset, 100, method="less").keep_indices
    assert set(kept) == set(np.argsort(dataset["less"])[-100:])


def test_length_keeps_the_longest_rows():
    dataset = with_target(scored())
    kept = select(dataset, 100, method="length").keep_indices
    assert set(kept) == {i for i, ids in enumerate(dataset["input_ids"]) if len(ids) >= 300}


def test_rds_lets_target_rows_take_turns():
    dataset = with_target(scored(60))
    similar, taken = np.array(dataset["rds"]), []
    while len(taken) < 23:
        own = similar[:, len(taken) % 5].copy()
        own[taken] = -np.inf
        taken.append(int(own.argmax()))
    assert set(select(dataset, 23, method="rds").keep_indices) == set(taken)


def test_of_equal_rows_the_seed_takes_some():
    dataset = with_target(scored(60), rds=np.ones((60, 5), dtype="float32"))
    first, again, other = (set(select(dataset, 20, method="rds", seed=seed).keep_indices) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("method", ["less", "rds", "length"])
def test_methods_for_a_target_see_only_the_rows_that_are_left(method):
    dataset = with_target(scored(120))
    dataset = dataset.add_column("aum", np.where(np.arange(120) < 30, -1.0, 1.0).astype("float32"))
    dataset = dataset.add_column("loss", np.full(120, 9.0, dtype="float32"))
    kept = select(dataset, 40, method=method, harmful="drop").keep_indices
    assert set(kept) == {30 + i for i in select(dataset.select(range(30, 120)), 40, method=method).keep_indices}


@pytest.mark.parametrize(("method", "named"), [("less", "'less'"), ("rds", "'rds'"), ("length", "'input_ids'")])
def test_a_missing_column_names_how_to_get_it(method, named):
    fix = "pass the tokenized rows" if method == "length" else "eval_dataset=rows of the target task"
    with pytest.raises(ValueError, match=rf"column {named}: .*{fix}"):
        select(scored(), 0.5, method=method)


def test_a_choice_that_is_clearly_worse_for_the_held_out_rows_than_random_is_warned_of(caplog):
    dataset = scored()
    hard = np.array(dataset["influence_norm"])
    against = dataset.remove_columns("influence_eval_loss").add_column("influence_eval_loss", -hard)
    with caplog.at_level(logging.WARNING, "hf_prune"):
        select(against, 0.5)
        select(against, 0.5, method="target")
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "hf_prune"):
        select(against, 0.5, method="norm")  # keeps what raises the loss
    assert "pass method='target'; otherwise pass probe=" in caplog.text
