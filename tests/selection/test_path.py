"""Several rates from one scoring, a split of a dictionary, the user's own cost, and plain sums."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import DatasetDict

from hf_prune.selection import PrunedDataset, prune, prune_path, select
from tests.selection.scored import scored


def test_a_path_holds_what_prune_gives_at_each_rate():
    dataset = scored()
    path = prune_path(dataset, [0.5, 0.3], difficulty=0.7, seed=2)
    assert list(path) == [0.5, 0.3]
    for rate, pruned in path.items():
        assert pruned.selection == select(dataset, round(1 - rate, 12), difficulty=0.7, seed=2)


def test_a_nested_path_only_loses_rows():
    path = prune_path(scored(), [0.3, 0.7, 0.5], nested=True, difficulty=None)
    kept = [set(path[rate].selection.keep_indices) for rate in (0.3, 0.5, 0.7)]
    assert [len(rows) for rows in kept] == [280, 200, 120]
    assert kept[0] > kept[1] > kept[2]
    assert path[0.7].selection.certificate.n == 400
    free = prune_path(scored(), [0.3, 0.7], difficulty=None)
    assert not set(free[0.3].selection.keep_indices) > set(free[0.7].selection.keep_indices)


def test_a_nested_path_stays_balanced_on_the_whole_dataset():
    certificate = prune_path(scored(1500), [0.3, 0.6], nested=True, difficulty=None)[0.6].selection.certificate
    assert certificate.predicted_shift < 0.5 * certificate.random_shift.mean


@pytest.mark.parametrize("rates", [[0.3, 1.0], [-0.1], ["0.3"], [True]])
def test_rates_outside_0_1_are_refused(rates):
    with pytest.raises(ValueError, match=r"not in \[0, 1\): pass shares of rows to drop, such as rates=\[0\.3, 0\.5"):
        prune_path(scored(), rates)


def test_a_path_takes_rates_only():
    with pytest.raises(TypeError, match="takes rates instead of keep: leave keep out"):
        prune_path(scored(), [0.3], keep=0.5)


def test_one_split_of_a_dictionary_is_pruned_and_the_others_stay():
    splits = DatasetDict(train=scored(), test=scored(50))
    pruned = prune(splits, 0.5, split="train")
    assert isinstance(pruned, DatasetDict)
    assert isinstance(pruned["train"], PrunedDataset)
    assert pruned["train"].selection == select(splits, 0.5, split="train") == select(splits["train"], 0.5)
    assert pruned["test"] is splits["test"]
    assert len(splits["train"]) == 400


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_a_column_as_cost_keeps_its_large_values(kind):
    size = np.random.default_rng(0).permutation(400).astype(kind)
    dataset = scored(k=8, tail=0.1).add_column("size", size)
    selection = select(dataset, 0.3, cost="size")
    assert size[selection.keep_indices].mean() > 300
    assert selection.certificate.predicted_shift < 0.5 * selection.certificate.random_shift.mean
    assert any("'size'" in note for note in selection.certificate.notes)
    reverse = dataset.remove_columns("size").add_column("size", -size)
    assert size[select(reverse, 0.3, cost="size").keep_indices].mean() < 100


def test_a_constant_cost_is_no_preference():
    dataset = scored().add_column("size", np.full(400, 7.0))
    assert select(dataset, 0.5, cost="size").certificate.kept == 200


def test_plain_sums_are_the_papers_objective():
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(300, 8)).astype("float32")
    influence -= influence.mean(axis=0)
    influence[:60] += 0.5
    dataset = scored(300, influence=influence, classes=1)
    plain, centred = (select(dataset, 0.5, centred=flag, difficulty=None) for flag in (False, True))
    total = influence[plain.drop_indices].sum(axis=0, dtype=np.float64)
    assert plain.certificate.predicted_shift == pytest.approx(np.linalg.norm(total), rel=1e-4)
    assert np.linalg.norm(total[:6]) < 0.2 * np.linalg.norm(influence[centred.drop_indices].sum(axis=0)[:6])
    assert plain.certificate.predicted_eval_loss_change == pytest.approx(
        np.array(dataset["influence_eval_loss"])[plain.drop_indices].sum(), abs=1e-5
    )
    assert any("centred=False" in note for note in plain.certificate.notes)


def test_plain_sums_that_cannot_vanish_are_made_as_small_as_can_be():
    rng = np.random.default_rng(0)
    influence = np.abs(rng.normal(size=(300, 4))).astype("float32")  # every row pulls the same way
    selection = select(scored(300, influence=influence), 0.5, centred=False, balance=False, difficulty=None)
    smallest = np.sort(np.linalg.norm(influence[:, :3], axis=1))[:150]
    assert selection.certificate.kept == 150
    assert np.linalg.norm(influence[selection.drop_indices, :3].sum(axis=0)) < 1.2 * smallest.sum()
    assert any("could not be met exactly in 1 of 1" in note for note in selection.certificate.notes)


def test_buckets_of_plain_sums_cancel_too():
    rng = np.random.default_rng(0)
    influence = (rng.normal(size=(1000, 8)) + 0.1).astype("float32")
    certificate = select(
        scored(1000, influence=influence, k=8), 0.5, centred=False, buckets=5, difficulty=None
    ).certificate
    assert certificate.solver_residual < 0.05 * certificate.random_solver_residual.mean
