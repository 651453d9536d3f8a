"""The formulas of `add_scores` on any visits in any order, against a loop over each row's own history."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.scores.formulas import FORMULAS, RowVisits, el2n
from hf_prune.trajectory.visits import Visits
from tests.scores.truth import scores_of

NUMBERS = st.floats(-4, 4, width=32)
VISIT = st.tuples(
    st.integers(0, 5),
    st.one_of(NUMBERS, st.just(float("nan"))),
    st.floats(0, 1, width=32),
    NUMBERS,
    st.floats(0, 1.5, width=32),
    st.sampled_from([0.0, 0.5, 1.0]),
)


@given(visits=st.lists(VISIT, min_size=1, max_size=30), early=st.integers(1, 4), names=st.permutations(range(6)))
def test_scores_are_those_of_each_rows_history(visits: list[tuple], early: int, names: list[int]):
    columns = [np.array(column, dtype=np.float32) for column in zip(*visits, strict=True)]
    ids = columns[0].astype(np.int64)
    found = Visits(1000 + ids, np.arange(len(ids)), *columns[1:])
    rows = np.array(names)[ids]  # a row's position is not its id
    by_row = RowVisits(found, rows, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = {"el2n": el2n(by_row, early)} | {name: formula(by_row) for name, formula in FORMULAS.items()}
    truth = scores_of([[int(rows[i]), *visit[1:]] for i, visit in enumerate(visits)], 6, early)
    assert set(scores) == set(truth)
    for name, values in truth.items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
