"""Every selection method keeps its promises, and the check sees one that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, List, Value

from hf_prune.selection import SelectionConfig
from hf_prune.selection.choice import Choice, drop_largest
from hf_prune.selection.method import METHODS, method
from hf_prune.selection.problem import Problem
from hf_prune.testing import check_selection_method
from tests.selection.scored import scored, with_scores, with_target


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """A dataset with every column that some method reads."""
    vectors = np.random.default_rng(3).normal(size=(240, 6)).astype("float32")
    return with_target(with_scores(scored(240))).add_column(
        "last_layer_influence", vectors.tolist(), feature=List(Value("float32"), length=6)
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_method_keeps_its_promises(name: str, rows: Dataset):
    check_selection_method(name, rows)


@pytest.fixture
def register() -> Iterator[Callable[[Any], str]]:
    """Registers a function as a method for one test."""

    def registered(choose: Any) -> str:
        method("toy")(choose)
        return "toy"

    yield registered
    METHODS.pop("toy", None)


def test_a_method_is_one_function_and_passes(rows: Dataset, register: Callable[[Any], str]):
    def smallest(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
        return Choice(drop_largest(problem, dropped, problem.norm))

    check_selection_method(register(smallest), rows)


def one_too_many(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    return Choice(drop_largest(problem, max(dropped - 1, 0), problem.norm))


def classes_left_out(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    return Choice(np.isin(np.arange(problem.n), np.argsort(problem.classes.codes, kind="stable")[:dropped]))


def by_the_clock(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    return Choice(drop_largest(problem, dropped, np.random.default_rng().random(problem.n)))


def the_first(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    return Choice(drop_largest(problem, dropped, -np.arange(problem.n, dtype=float)))


def missing_is_zero(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    values = np.array([value or 0.0 for value in problem.dataset["aum"]])
    return Choice(drop_largest(problem, dropped, values))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (one_too_many, "keeps 193 of 240 rows with keep=0.8, where 192 were meant"),
        (classes_left_out, "rows of class 'class 0', where 0.50 of them were meant"),
        (by_the_clock, "keeps other rows when it is called again"),
        (the_first, "in another order, though its seed changes nothing"),
        (missing_is_zero, "takes a missing value in 'aum' for some value"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_method_that_breaks_a_promise_is_told_which(
    broken: Any, told: str, rows: Dataset, register: Callable[[Any], str]
):
    with pytest.raises(AssertionError, match=f"'toy' .*{told}"):
        check_selection_method(register(broken), rows)
