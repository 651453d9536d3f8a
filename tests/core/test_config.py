"""A configuration is checked once, and comes back from JSON as it went there."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune._core.config import CURVATURES, ENGINES, MODES, SPACES, UNITS, ScoringConfig, SelectionConfig
from hf_prune.influence import add_influence
from hf_prune.selection import prune, prune_path, select

NAMES = st.text(min_size=1, max_size=8)
SCORINGS = st.builds(
    ScoringConfig,
    version=st.none() | NAMES,
    engine=st.sampled_from(ENGINES),
    mode=st.sampled_from(MODES),
    space=st.sampled_from(SPACES),
    curvature=st.sampled_from(CURVATURES),
    directions=st.integers(1, 10**6),
    seed=st.integers(0, 2**63),
    column=NAMES,
    eval_digest=st.none() | NAMES,
)
SELECTIONS = st.builds(
    SelectionConfig,
    keep=st.integers(1, 10**9) | st.floats(0, 1, exclude_min=True),
    method=NAMES,
    difficulty=st.none() | st.just("auto") | st.floats(0, 1),
    harmful=st.sampled_from(["keep", "drop"]),
    balance=st.none() | st.just(False) | NAMES,
    centred=st.booleans(),
    features=st.none() | NAMES,
    buckets=st.just("auto") | st.integers(1, 1000),
    column=NAMES,
    seed=st.integers(0, 2**63),
)


@given(SCORINGS | SELECTIONS)
def test_a_configuration_comes_back_from_json(config):
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert [type(v) for v in again.to_dict().values()] == [type(v) for v in config.to_dict().values()]


@given(SELECTIONS)
def test_what_was_changed_makes_the_same_configuration(config):
    assert SelectionConfig(**config.changed()) == config


def test_numpy_numbers_are_written_as_json_holds_them():
    config = SelectionConfig(keep=np.float32(0.5), seed=np.int64(3), difficulty=np.float64(0.25), buckets=np.int8(4))
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config == SelectionConfig(keep=0.5, seed=3, difficulty=0.25, buckets=4)


@pytest.mark.parametrize("kind", [ScoringConfig, SelectionConfig])
def test_a_field_of_a_newer_version_is_named(kind):
    values = {"keep": 0.5} if kind is SelectionConfig else {}
    with pytest.raises(ValueError, match=rf"{kind.__name__} has no field 'beam', 'width': .* upgrade hf-prune"):
        kind.from_dict(values | {"width": 3, "beam": 2})


@pytest.mark.parametrize(
    ("kind", "values"), [(SelectionConfig, {"keep": "half"}), (ScoringConfig, {"column": 3}), (SelectionConfig, {})]
)
def test_a_value_that_is_not_allowed_is_a_value_error_when_it_is_read(kind, values):
    with pytest.raises(ValueError, match=r"keep is a share|column is a string|neither keep="):
        kind.from_dict(values)


def test_an_older_version_without_a_field_is_read_with_its_default():
    assert SelectionConfig.from_dict({"keep": 0.5, "method": "random"}) == SelectionConfig(keep=0.5, method="random")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "some"}, "mode must be one of expected, visits, not 'some'"),
        ({"space": "weights"}, "space must be one of outputs, parameters"),
        ({"curvature": "kfac"}, "curvature must be one of auto, "),
        ({"engine": "fast"}, "engine must be one of auto, dense, projected"),
        ({"directions": 0}, "directions must be a whole number from 1 on, not 0"),
        ({"directions": True}, "directions must be a whole number"),
        ({"seed": -1}, "seed=-1 is negative"),
    ],
)
def test_a_scoring_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ScoringConfig(**values)


def test_every_space_has_a_unit():
    assert set(UNITS) == set(SPACES)


def test_a_misspelt_option_gets_the_one_that_was_meant():
    with pytest.raises(TypeError, match="no option 'metod': did you mean 'method'"):
        SelectionConfig.of(keep=0.5, metod="random")
    with pytest.raises(TypeError, match="no option 'xyz': the options are keep, epsilon, method"):
        SelectionConfig.of(keep=0.5, xyz=1)


def test_the_options_of_add_influence_are_those_of_the_configuration():
    shown = inspect.signature(add_influence).parameters
    for name, value in ScoringConfig().arguments().items():
        assert shown[name].default == value, name


@pytest.mark.parametrize(("function", "apart"), [(prune, set()), (select, set()), (prune_path, {"keep", "epsilon"})])
def test_a_function_shows_the_options_in_its_signature_and_its_docstring(function, apart):
    shown = inspect.signature(function).parameters
    assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in shown.values())
    text = inspect.getdoc(function)
    for name, value in SelectionConfig(keep=0.5).to_dict().items():
        if name in apart:
            assert name not in shown
            continue
        assert name == "keep" or shown[name].default == value
        assert text.count(f"\n    {name} (`") == 1
    assert "**options" not in text
    assert text.index("\n    seed (`") < text.index("\nReturns:")
