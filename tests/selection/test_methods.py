"""What every selection method has to do, and how one is added."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from datasets import Dataset, List, Value

from hf_prune.selection import SelectionConfig, prune, select
from hf_prune.selection.choice import Choice, drop_largest
from hf_prune.selection.method import METHODS, method
from hf_prune.selection.problem import Problem
from tests.selection.scored import scored, with_scores, with_target

LEFT_TO_CHANCE = ("random", "ccs", "iclr2023", "target", "less", "rds", "length")
"""Methods that leave the classes' shares to chance, as published."""


def everything(rows: int = 300) -> Dataset:
    """A dataset with every column that some method reads."""
    vectors = np.random.default_rng(3).normal(size=(rows, 6)).astype("float32")
    return with_target(with_scores(scored(rows))).add_column(
        "last_layer_influence", vectors.tolist(), feature=List(Value("float32"), length=6)
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", [1, 0.3, 0.5, 1.0])
def test_every_method_keeps_as_many_rows_as_asked(name, keep):
    options = {"balance": False} if keep == 1 and name != "stratified" else {}
    keep = 3 if keep == 1 and name == "stratified" else keep
    selection = select(everything(), keep, method=name, **options)
    assert len(selection.keep_indices) == (keep if isinstance(keep, int) else round(300 * keep))


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(LEFT_TO_CHANCE)))
def test_every_method_that_balances_keeps_the_shares_of_the_classes(name):
    certificate = select(everything(), 0.5, method=name).certificate
    for label, before in certificate.classes_before.items():
        assert abs(certificate.classes_after[label] - before / 2) <= 1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_the_same_choice_again(name):
    first, again = (select(everything(), 0.4, method=name, seed=5) for _ in range(2))
    assert first == again
    assert first.certificate.method == name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_described_and_offered(name):
    assert f'`"{name}"`' in inspect.getdoc(prune)
    assert inspect.getdoc(METHODS[name].choose)


def test_a_method_is_one_function():
    try:

        @method("shortest", reads=("features",), paper="https://example.org")
        def shortest(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
            """Keeps the rows with the shortest text."""
            lengths = np.array([len(text) for text in problem.dataset["text"]])
            return Choice(drop_largest(problem, dropped, lengths), ("Short rows were kept.",), {"unit": "letters"})

        pruned = prune(scored(400), 0.25, method="shortest", balance=False)
        assert max(map(len, pruned["text"])) == len("row 99")
        assert pruned.selection.certificate.notes[0] == "Short rows were kept."
        assert pruned.selection.resolved["unit"] == "letters"
        with pytest.raises(ValueError, match=r"method='norm' does not use features: .*'shortest'"):
            select(scored(), 0.5, method="norm", features="influence")
        with pytest.raises(ValueError, match="selection method 'shortest' is already registered"):
            method("shortest")(shortest)
    finally:
        del METHODS["shortest"]


def test_an_option_that_only_some_methods_read_names_them():
    with pytest.raises(ValueError, match=r"method='ccs' does not use cost: .* one of \['influence'\] as method"):
        select(everything(), 0.5, method="ccs", cost="aum")
