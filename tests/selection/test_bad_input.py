"""A wrong call gets one sentence that says what is wrong and how to fix it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_prune.selection import prune, select
from tests.selection.scored import scored


def _with(column: str, row: int, value: Any, dataset: Dataset | None = None) -> Dataset:
    dataset = scored() if dataset is None else dataset
    values = dataset[column][:]
    values[row] = value
    return dataset.remove_columns(column).add_column(column, values, feature=dataset.features[column])


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_outside_0_1_is_refused(keep):
    with pytest.raises(ValueError, match=r"not in \(0, 1\]: pass the share to keep, such as keep=0\.5"):
        select(scored(), keep)


@pytest.mark.parametrize("keep", [0, -3, 401])
def test_a_number_of_rows_outside_the_dataset_is_refused(keep):
    with pytest.raises(ValueError, match=rf"keep={keep} is not within 1\.\.400"):
        select(scored(), keep)


@pytest.mark.parametrize("keep", [True, "0.5", [1, 2], 1j])
def test_keep_of_another_type_is_refused(keep):
    with pytest.raises(TypeError, match=f"got {type(keep).__name__} .* pass for example keep=0.5"):
        select(scored(), keep)


def test_neither_keep_nor_epsilon_is_refused():
    with pytest.raises(ValueError, match=r"neither keep= nor epsilon=: pass one of them, keep=0\.5"):
        prune(scored())


def test_both_keep_and_epsilon_are_refused():
    with pytest.raises(ValueError, match="both keep= and epsilon=: pass one of them"):
        prune(scored(), 0.5, epsilon=0.1)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_epsilon_that_is_not_positive_is_refused(epsilon):
    with pytest.raises(ValueError, match="is not a positive finite number: pass the largest predicted shift"):
        select(scored(), epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [True, "0.1"])
def test_epsilon_of_another_type_is_refused(epsilon):
    with pytest.raises(TypeError, match="epsilon is a positive number, got"):
        select(scored(), epsilon=epsilon)


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"method='best' is not known: .*'influence', .*'random', .*'stratified'"):
        select(scored(), 0.5, method="best")


def test_a_method_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="method is a string, got int"):
        select(scored(), 0.5, method=3)


@pytest.mark.parametrize(
    ("difficulty", "error", "message"),
    [
        (1.2, ValueError, r"not in \[0, 1\]"),
        ("hard", ValueError, "pass 'auto'"),
        (True, TypeError, "pass 'auto'"),
        (float("nan"), ValueError, r"not in \[0, 1\]"),
    ],
)
def test_an_unknown_difficulty_is_refused(difficulty, error, message):
    with pytest.raises(error, match=message):
        select(scored(), 0.5, difficulty=difficulty)


@pytest.mark.parametrize(
    ("buckets", "error", "message"),
    [
        (0, ValueError, "less than 1"),
        ("many", ValueError, "pass 'auto'"),
        (2.0, TypeError, "pass 'auto'"),
        (True, TypeError, "pass 'auto'"),
    ],
)
def test_an_impossible_number_of_buckets_is_refused(buckets, error, message):
    with pytest.raises(error, match=message):
        select(scored(), 0.5, buckets=buckets)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), ("0", TypeError)])
def test_a_seed_that_is_no_whole_number_is_refused(seed, error):
    with pytest.raises(error, match=r"pass .* whole number|seed is a whole number"):
        select(scored(), 0.5, seed=seed)


@pytest.mark.parametrize("balance", [True, 1, ["label"]])
def test_balance_of_another_type_is_refused(balance):
    with pytest.raises(TypeError, match="pass a column name such as balance='label', False"):
        select(scored(), 0.5, balance=balance)


def test_a_balance_column_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no column 'kind' to balance: pass one of \['text', 'label'"):
        select(scored(), 0.5, balance="kind")


@pytest.mark.parametrize("column", ["influence_norm", "influence"])
def test_a_column_that_cannot_be_classes_is_refused(column):
    with pytest.raises(TypeError, match="cannot be balanced: pass a column of integers, strings"):
        select(scored(), 0.5, balance=column)


def test_a_class_too_small_for_its_share_keeps_a_row_and_is_named():
    label = np.array([0] * 200 + [1] * 199 + [2])
    for method in ("influence", "stratified", "norm"):
        certificate = select(scored(label=label), 40, method=method).certificate
        assert certificate.classes_after == {"class 0": 20, "class 1": 19, "class 2": 1} or (
            certificate.classes_after == {"class 0": 19, "class 1": 20, "class 2": 1}
        )
        assert any("'class 2'" in note and "keeps one row" in note for note in certificate.notes)
    assert not any("keeps one row" in note for note in select(scored(), 40).certificate.notes)


def test_more_classes_than_kept_rows_are_refused():
    with pytest.raises(ValueError, match=r"leaves some of the 3 classes .* empty: keep at least 3 rows"):
        select(scored(), 2)
    assert select(scored(), 2, balance=False).certificate.kept == 2


def test_stratified_without_classes_is_refused():
    with pytest.raises(ValueError, match="'stratified' needs classes"):
        select(scored(), 0.5, method="stratified", balance=False)


@pytest.mark.parametrize("column", ["influence", "influence_norm"])
def test_a_missing_column_names_add_influence(column):
    with pytest.raises(ValueError, match=f"no column '{column}': score it first with `add_influence`"):
        select(scored().remove_columns(column), 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("column", ["influence_norm", "influence_eval_loss", "influence"])
def test_values_that_are_not_finite_are_counted_and_the_first_row_is_named(column, value):
    bad = [value] * 16 if column == "influence" else value
    dataset = _with(column, 30, bad, _with(column, 17, bad))
    message = rf"'{column}' has NaN or infinite values in 2 of 400 rows, the first is row 17: score the dataset again"
    with pytest.raises(ValueError, match=message):
        select(dataset, 0.5)


def test_rows_without_influence_are_counted():
    values = [None] * 3 + [[0.1, 0.2]] * 397
    with pytest.raises(ValueError, match="has no value in 3 rows: score the dataset again with `add_influence`"):
        select(scored().remove_columns("influence").add_column("influence", values), 0.5)


@pytest.mark.parametrize("values", [[[0.1]] * 399 + [[0.1, 0.2]], [[]] * 400])
def test_lists_of_unequal_or_no_length_are_refused(values):
    dataset = scored().remove_columns("influence")
    with pytest.raises((ValueError, TypeError), match=r"unequal length|not floats"):
        select(dataset.add_column("influence", values), 0.5)


@pytest.mark.parametrize(
    ("values", "kind"), [([1.0] * 400, "double"), ([[1, 2]] * 400, "int64"), (["a"] * 400, "string")]
)
def test_an_influence_column_of_another_type_is_refused(values, kind):
    dataset = scored().remove_columns("influence").add_column("influence", values)
    with pytest.raises(TypeError, match=f"{kind}, not .*floats: name an influence column"):
        select(dataset, 0.5)


def test_a_norm_of_another_type_is_refused():
    dataset = scored().remove_columns("influence_norm").add_column("influence_norm", ["a"] * 400)
    with pytest.raises(TypeError, match="'influence_norm' holds string, not numbers"):
        select(dataset, 0.5)


def test_more_directions_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"16 directions but the dataset only 10 rows: .*directions=10"):
        select(scored(10), 0.5)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="has no rows: pass one that has"):
        select(scored().select([]), 0.5)


def test_a_dataset_dict_names_its_splits():
    splits = DatasetDict(train=scored(), test=scored())
    with pytest.raises(TypeError, match=r"Got a DatasetDict: name one of its splits \('train', 'test'\) with split="):
        prune(splits, 0.5)
    with pytest.raises(ValueError, match=r"no split 'dev': pass one of \['train', 'test'\]"):
        prune(splits, 0.5, split="dev")


def test_a_split_of_a_plain_dataset_is_refused():
    with pytest.raises(ValueError, match="split='train' names a part of a DatasetDict, and this is a Dataset"):
        prune(scored(), 0.5, split="train")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cost": 3}, TypeError, "cost is a string"),
        ({"cost": "influence_norm", "difficulty": 0.5}, ValueError, "both difficulty and cost: pass one"),
        ({"cost": "influence_norm", "method": "norm"}, ValueError, "does not use cost: leave it out"),
        ({"cost": "text"}, TypeError, "'text' holds string, not numbers"),
        ({"cost": "size"}, ValueError, "no column 'size': name another column with `cost=`"),
        ({"features": "influence"}, ValueError, "does not use features: leave it out, or pass one of"),
        ({"features": "text", "method": "herding"}, TypeError, "'text' is of type string, not a list of floats"),
        ({"harmful": "ignore"}, ValueError, "pass 'keep', or 'drop'"),
        ({"centred": 1}, TypeError, "centred is True or False, got int 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        select(scored(), 0.5, **options)


def test_a_stream_is_refused():
    with pytest.raises(TypeError, match="IterableDataset, whose rows have no ids: make a Dataset"):
        prune(scored().to_iterable_dataset(), 0.5)


@pytest.mark.parametrize("dataset", [[{"influence": [0.1]}], {"influence": [[0.1]]}, None])
def test_anything_else_is_refused(dataset):
    with pytest.raises(TypeError, match=r"pass a `datasets\.Dataset` with influence columns"):
        prune(dataset, 0.5)
