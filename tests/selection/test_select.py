"""What `select` promises about the rows: their number, balance, shift, and that they are always the same."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
from datasets import Dataset, List, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.selection import select
from hf_prune.selection.vectors import read_vectors
from tests.selection.scored import scored


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(16, 90),
    share=st.floats(0.35, 1.0),
    classes=st.integers(1, 3),
    seed=st.integers(0, 1000),
    difficulty=st.sampled_from(["auto", None, 0.0, 0.5, 1.0]),
)
def test_counts_are_exact_for_any_share(rows, share, classes, seed, difficulty):
    dataset = scored(rows, k=8, classes=classes, seed=seed)
    selection = select(dataset, share, difficulty=difficulty, balance=False, seed=seed)
    assert len(selection.keep_indices) == max(1, int(np.floor(share * rows + 0.5)))
    both = np.concatenate([selection.keep_indices, selection.drop_indices])
    np.testing.assert_array_equal(np.sort(both), np.arange(rows))


@pytest.mark.parametrize(("keep", "kept"), [(0.5, 200), (0.25, 100), (1.0, 400), (400, 400), (37, 37), (0.0001, 1)])
def test_keep_is_a_share_or_a_number_of_rows(keep, kept):
    assert len(select(scored(), keep, balance=False).keep_indices) == kept


def test_numpy_numbers_are_numbers():
    dataset = scored()
    assert select(dataset, np.float32(0.5)).config.keep == 0.5
    assert select(dataset, np.int64(50)) == select(dataset, 50)


@pytest.mark.parametrize("difficulty", [None, 0.3, 0.7])
@pytest.mark.parametrize("keep", [0.7, 0.3])
def test_shift_is_far_below_random(keep, difficulty):
    certificate = select(scored(1500), keep, difficulty=difficulty).certificate
    assert certificate.predicted_shift < 0.5 * certificate.random_shift.mean
    assert certificate.solver_residual < 0.05 * certificate.random_solver_residual.mean


def test_audit_residual_is_below_random_though_never_balanced():
    certificate = select(scored(1500, k=32), 0.5, difficulty=None).certificate
    assert certificate.audit_ratio is not None
    assert certificate.audit_ratio < 0.5
    assert certificate.audit_residual > certificate.solver_residual


def test_audit_residual_is_never_seen():
    dataset = scored()
    influence = np.array(dataset["influence"], dtype="float32")
    norm = np.array(dataset["influence_norm"], dtype="float32")
    for changed, same in ((slice(12, 16), True), (slice(11, 12), False)):
        other = influence.copy()
        other[:, changed] = 100 * np.random.default_rng(1).normal(size=other[:, changed].shape)
        selection = select(scored(influence=other, influence_norm=norm), 0.5)
        assert np.array_equal(selection.keep_indices, select(dataset, 0.5).keep_indices) == same


@pytest.mark.parametrize("method", ["influence", "stratified", "norm"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.77])
def test_class_shares_are_kept(method, keep):
    label = np.repeat([0, 1, 2], [300, 80, 20])
    selection = select(scored(label=label), keep, method=method, difficulty=0.9)
    kept = np.bincount(label[selection.keep_indices])
    assert (np.abs(kept - keep * np.bincount(label)) < 1).all()
    assert selection.certificate.classes_after == {f"class {c}": count for c, count in enumerate(kept.tolist())}
    assert selection.resolved["balance"] == "label"


def test_without_balance_difficulty_may_change_the_classes():
    label = np.repeat([0, 1], 200)
    norm = np.where(label == 0, 1.0, 2.0) * np.random.default_rng(0).uniform(0.9, 1.1, 400)
    hard = select(scored(label=label, influence_norm=norm.astype("float32")), 0.5, balance=False, difficulty=1.0)
    assert np.bincount(label[hard.keep_indices])[1] > 150
    assert hard.certificate.classes_before is None


def test_labels_that_are_scores_are_not_taken_for_classes():
    dataset = scored().remove_columns("label").add_column("label", list(range(400)))
    assert select(dataset, 0.5).resolved["balance"] is False


@pytest.mark.parametrize("values", [["b", "a"] * 200, [True, False] * 200, ["x", None] * 200])
def test_any_column_of_few_values_can_be_balanced(values):
    selection = select(scored().add_column("kind", values), 0.25, balance="kind")
    assert list(selection.certificate.classes_after.values()) == [50, 50]


@pytest.mark.parametrize("size", [0.05, 0.3, 0.8])
def test_epsilon_is_respected(size):
    dataset = scored(300)
    epsilon = size * select(dataset, 0.5, method="random").certificate.random_shift.mean
    selection = select(dataset, epsilon=epsilon)
    kept = selection.certificate.kept
    assert selection.certificate.predicted_shift <= epsilon
    assert selection.resolved["kept"] == kept < 300
    # one row fewer is too few: this is the border, up to what rounding makes of the next sizes
    assert select(dataset, kept - 1, difficulty=None).certificate.predicted_shift > epsilon
    np.testing.assert_array_equal(select(dataset, kept, difficulty=None).keep_indices, selection.keep_indices)


def test_a_larger_epsilon_keeps_fewer_rows():
    dataset = scored(300)
    unit = select(dataset, 0.5).certificate.random_shift.mean
    kept = [select(dataset, epsilon=size * unit).certificate.kept for size in (0.1, 0.5, 2.0)]
    assert kept[0] > kept[1] > kept[2]


def test_a_tiny_epsilon_keeps_everything_and_says_so():
    certificate = select(scored(), epsilon=1e-12).certificate
    assert certificate.kept == 400
    assert certificate.predicted_shift == 0.0
    assert any("all rows are kept" in note for note in certificate.notes)


def test_a_huge_epsilon_ends_at_the_classes_and_says_so():
    certificate = select(scored(), epsilon=1e6).certificate
    assert min(certificate.classes_after.values()) >= 1
    assert any("row of every class" in note for note in certificate.notes)


def test_same_rows_for_the_same_seed_and_others_for_another():
    first, again, other = (select(scored(), 0.5, difficulty=None, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert not np.array_equal(first.keep_indices, other.keep_indices)


def test_same_rows_however_arrow_holds_them():
    dataset = scored().select(np.random.default_rng(0).permutation(400).tolist())
    flat = dataset.flatten_indices()
    parts = [flat.select(range(100)), flat.select(range(100, 400)).flatten_indices()]
    lists = flat.cast_column("influence", List(Value("float64")))
    expected = select(flat, 0.5)
    for same in (dataset, concatenate_datasets(parts), flat.with_format("numpy"), lists):
        assert select(same, 0.5) == expected


def test_the_influence_column_is_read_without_a_copy():
    dataset = scored()
    buffer = dataset.data.column("influence").chunk(0).flatten().buffers()[1]
    assert read_vectors(dataset, "influence").chunks[0].ctypes.data == buffer.address


def test_a_slice_is_read_at_its_place():
    dataset = scored()
    copied = Dataset.from_list(dataset.to_list()[100:300], features=dataset.features)
    assert select(dataset.select(range(100, 300)), 0.5) == select(copied, 0.5)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_same_rows_for_any_number_of_jobs(backend):
    dataset = scored(600)
    alone = select(dataset, 0.5, buckets=4)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert select(dataset, 0.5, buckets=4) == alone


@pytest.mark.parametrize("method", ["random", "stratified", "norm"])
def test_baselines_choose_as_their_names_say(method):
    dataset = scored(label=np.repeat([0, 1, 2, 2], 100))
    selection = select(dataset, 0.5, method=method)
    norm = np.array(dataset["influence_norm"])
    kept = norm[selection.keep_indices].mean()
    assert len(selection.keep_indices) == 200
    if method == "norm":
        for rows in (slice(0, 100), slice(100, 200), slice(200, 400)):
            inside = np.isin(np.arange(400)[rows], selection.keep_indices)
            assert norm[rows][inside].min() >= norm[rows][~inside].max()
    else:
        assert abs(kept - norm.mean()) < 0.2 * norm.mean()
        assert not np.array_equal(selection.keep_indices, select(dataset, 0.5, method=method, seed=1).keep_indices)
    assert selection.certificate.audit_ratio > 0.3


def test_another_column_can_be_used():
    dataset = scored()
    renamed = dataset.rename_columns({n: n.replace("influence", "foo") for n in dataset.column_names if "infl" in n})
    np.testing.assert_array_equal(select(renamed, 0.5, column="foo").keep_indices, select(dataset, 0.5).keep_indices)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (5, 3), (16, 16)])
def test_few_rows_and_directions_work(n, k):
    selection = select(scored(n, k=k), 1 if n < 3 else 0.5, balance=False)
    assert selection.certificate.audit == k // 4
    assert (selection.certificate.audit_residual is None) == (k < 4)


def test_influence_that_is_all_zero_still_gives_the_count():
    selection = select(scored(influence=np.zeros((400, 8))), 0.5)
    assert selection.certificate.kept == 200
    assert selection.certificate.predicted_shift == 0.0
    assert selection.certificate.audit_ratio is None
