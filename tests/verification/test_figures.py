"""Metrics, means and intervals of any values, against plain loops and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from transformers.trainer_utils import PredictionOutput

from hf_prune.verification.metrics import measure_of
from hf_prune.verification.result import MeanInterval

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8)


@given(
    shape=st.sampled_from([(6,), (3, 4)]), classes=st.integers(2, 4), seed=st.integers(0, 10**6), extra=st.booleans()
)
def test_accuracy_counts_the_labels_that_are_there(shape: tuple[int, ...], classes: int, seed: int, extra: bool):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(*shape, classes)), rng.integers(-1, classes, shape)
    labels = np.where(labels < 0, -100, labels)
    pairs = [(int(np.argmax(logits[at])), int(labels[at])) for at in np.ndindex(*shape) if labels[at] != -100]
    assume(pairs)
    predictions = (logits, rng.normal(size=3)) if extra else logits
    found = measure_of("accuracy").of(PredictionOutput(predictions, labels, {}))
    assert found == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


@given(values=VALUES, level=st.floats(0.5, 0.99))
def test_a_mean_has_students_interval(values: list[float], level: float):
    found = MeanInterval.of(values, level=level)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    if len(values) == 1:
        assert found.sd is None
        assert found.interval is None
        return
    assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    if found.sd > 1e-9:
        truth = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert found.interval == pytest.approx(truth, rel=1e-9, abs=1e-9)


@given(values=VALUES, moved=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_a_gap_is_paired_by_seed(values: list[float], moved: float, seed: int):
    less = [value - moved for value in values]
    found = MeanInterval.of_gap(values, less)
    assert found.mean == pytest.approx(moved, abs=1e-9)
    assert found.sd is None or found.sd < 1e-9
    back = MeanInterval.of_gap(less, values)
    assert back.mean == pytest.approx(-found.mean, abs=1e-9)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        MeanInterval.of_gap(values, [*less, 0.0])
