"""What `prune` promises of any dataset and any arguments, and what a saved selection keeps of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.selection import Selection, prune, prune_path, select
from hf_prune.selection.method import METHODS
from tests.selection.scored import scored, with_scores
from tests.selection.test_methods import LEFT_TO_CHANCE, everything

SEEDS = st.integers(0, 1000)
DATA = st.fixed_dictionaries({"rows": st.integers(12, 60), "classes": st.integers(1, 3), "seed": SEEDS})
# What no number of rows can be, and what looks like one: text, nothing, containers, infinities, other numbers.
ODD = st.one_of(
    st.floats(allow_nan=True),
    st.integers(-3, 70),
    st.booleans(),
    st.text(max_size=5),
    st.complex_numbers(max_magnitude=3),
    st.lists(st.floats(0, 1), max_size=2),
    st.fractions(0, 2),
    st.sampled_from([np.float32(0.5), np.float64("nan"), np.int64(7), np.bool_(True), np.array([0.5]), b"0.5"]),
)


def taken(call: Callable[[], Any]) -> Any:
    """What a call returns, or None where it refuses in one sentence."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        text = str(error)
    assert "\n" not in text, text
    assert text.endswith("."), text
    assert 20 < len(text) < 400, text
    return None


@settings(max_examples=40)
@given(name=st.sampled_from(sorted(METHODS)), share=st.floats(0.15, 1), seed=SEEDS, balance=st.booleans())
def test_any_method_keeps_so_many_rows_once_each_in_their_order_and_the_same_again(
    name: str, share: float, seed: int, balance: bool
):
    dataset = everything(60)
    options: dict[str, Any] = {"method": name, "seed": seed}
    if not balance and name != "stratified":
        options["balance"] = False
    pruned = prune(dataset, share, **options)
    kept = pruned.selection.keep_indices
    assert len(pruned) == len(kept) == max(1, math.floor(share * 60 + 0.5))
    assert (np.diff(kept) > 0).all()
    assert pruned["text"][:] == [f"row {row}" for row in kept]
    assert set(kept.tolist()) | set(pruned.selection.drop_indices.tolist()) == set(range(60))
    assert prune(dataset, share, **options).selection == pruned.selection
    if pruned.selection.resolved["balance"]:
        certificate = pruned.selection.certificate
        for label, before in certificate.classes_before.items():
            assert abs(certificate.classes_after[label] - before * len(kept) / 60) < 1
    else:
        assert name in LEFT_TO_CHANCE or not balance


@settings(max_examples=15)
@given(data=DATA, difficulty=st.sampled_from(["auto", None, 0.3]), rates=st.lists(st.floats(0, 0.7), max_size=4))
def test_a_nested_path_keeps_of_each_rate_only_rows_that_smaller_rates_keep(data, difficulty, rates: list[float]):
    dataset = scored(**data, k=4)
    path = prune_path(dataset, rates, nested=True, difficulty=difficulty, balance=False)
    assert list(path) == list(dict.fromkeys(rates))
    before: set[int] = set(range(data["rows"]))
    for rate in sorted(path):
        kept = set(path[rate].selection.keep_indices.tolist())
        assert len(kept) == max(1, math.floor(round(1 - rate, 12) * data["rows"] + 0.5))
        assert kept <= before
        before = kept


@settings(max_examples=15)
@given(
    data=DATA,
    keep=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    name=st.sampled_from(["norm", "el2n", "aum", "random"]),
)
def test_a_score_keeps_of_fewer_rows_only_those_it_keeps_of_more(data, keep: tuple[int, int], name: str):
    dataset = with_scores(scored(**data, k=4), data["seed"])
    less, more = (set(select(dataset, n, method=name, balance=False).keep_indices.tolist()) for n in sorted(keep))
    assert less <= more


@settings(max_examples=15)
@given(data=DATA, sizes=st.tuples(st.floats(0.01, 3), st.floats(0.01, 3)))
def test_the_shift_stays_within_epsilon_and_a_larger_one_keeps_no_more_rows_up_to_rounding(data, sizes):
    dataset = scored(**data, k=4)
    unit = select(dataset, 0.5, method="random").certificate.random_shift.mean
    kept = []
    for size in sorted(sizes):
        certificate = select(dataset, epsilon=size * unit, balance=False).certificate
        assert certificate.predicted_shift <= size * unit
        kept.append(certificate.kept)
    assert kept[1] <= kept[0] + max(2, data["rows"] // 8)


@settings(max_examples=200)
@given(keep=ODD)
def test_any_keep_is_kept_or_refused_in_one_sentence(keep: Any):
    dataset = scored(40, k=4)
    selection = taken(lambda: select(dataset, keep, method="random"))
    if selection is not None:
        assert isinstance(keep, int | float | Fraction | np.number)
        assert not isinstance(keep, bool)
        whole = isinstance(keep, int | np.integer)
        wanted = int(keep) if whole else max(1, math.floor(float(keep) * 40 + 0.5))
        assert len(selection.keep_indices) == wanted
        assert 0 < keep <= (40 if whole else 1)


@settings(max_examples=150)
@given(
    name=st.sampled_from(["epsilon", "difficulty", "hard", "cut", "buckets", "seed", "balance", "cost", "harmful"]),
    value=ODD,
)
def test_any_other_option_is_taken_or_refused_in_one_sentence(name: str, value: Any):
    dataset = scored(40, k=4)
    keep = None if name == "epsilon" else 0.5
    selection = taken(lambda: select(dataset, keep, **{name: value}))
    if selection is not None:
        assert len(selection.keep_indices) == (20 if name != "epsilon" else selection.certificate.kept)


@settings(max_examples=60)
@given(rates=st.lists(ODD, min_size=1, max_size=2))
def test_any_rate_is_taken_or_refused_in_one_sentence(rates: list[Any]):
    dataset = scored(40, k=4)
    path = taken(lambda: prune_path(dataset, rates, method="random"))
    if path is not None:
        assert all(0 <= rate < 1 and not isinstance(rate, bool) for rate in path)


@settings(max_examples=20)
@given(
    data=DATA,
    share=st.floats(0.2, 1),
    name=st.sampled_from(["influence", "random", "el2n"]),
    drop=st.lists(st.sampled_from(["influence_eval_loss", "label"]), max_size=2, unique=True),
    harmful=st.sampled_from(["keep", "drop"]),
)
def test_a_selection_comes_back_from_disk_as_it_was(data, share: float, name: str, drop: list[str], harmful: str):
    dataset = with_scores(scored(**data, k=4), data["seed"]).remove_columns(drop)
    selection = select(dataset, share, method=name, harmful=harmful, seed=data["seed"])
    with TemporaryDirectory() as directory:
        selection.save(directory)
        found = Selection.load(directory)
    assert found == selection
    assert found.ids_digest == selection.ids_digest
    raw = dataset.select_columns(["text"])
    assert found.apply(raw)["text"][:] == selection.apply(raw)["text"][:]


@settings(max_examples=20)
@given(data=DATA, share=st.floats(0.2, 1), unseen=st.sampled_from(["keep", "drop"]), more=st.integers(0, 5))
def test_a_selection_finds_its_rows_wherever_they_lie(data, share: float, unseen: str, more: int):
    dataset = scored(**data, k=4)
    selection = select(dataset, share, balance=False)
    texts = dataset["text"][:] + [f"another {i}" for i in range(more)]
    order = np.random.default_rng(data["seed"]).permutation(len(texts))
    raw = type(dataset).from_dict({"text": [texts[i] for i in order]})
    wanted = {dataset["text"][int(row)] for row in selection.keep_indices}
    wanted |= {text for text in texts if text.startswith("another") and unseen == "keep"}
    applied = selection.apply(raw, unseen=unseen)
    assert applied["text"][:] == [text for text in raw["text"] if text in wanted]
    assert applied.selection.certificate.kept == selection.certificate.kept


def test_a_selection_about_other_rows_is_no_selection():
    whole = select(scored(40, k=4), 0.5)
    fields = {name: getattr(whole, name) for name in ("certificate", "config", "resolved")}
    kept, dropped = whole.keep_indices, whole.drop_indices
    for keep, drop in ((kept[1:], dropped), (kept, dropped[1:]), (kept[::-1], dropped), (dropped[:19], kept)):
        with pytest.raises(ValueError, match="select again"):
            Selection(keep, drop, **fields)
    with pytest.raises(ValueError, match="not those that the certificate is about"):
        Selection(dropped, kept, **fields, ids_digest=whole.ids_digest)
