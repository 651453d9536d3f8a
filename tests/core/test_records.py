"""Records come back from JSON as they went there, and say what they do not know."""

from __future__ import annotations

import json

import pytest

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.config import ScoringConfig
from hf_prune._core.records import Observed, RecordedRun, ScoringRecord
from tests.publish import samples

RECORD = ScoringRecord(
    ScoringConfig(mode="visits", directions=8), RecordedRun.of("d" * 64, samples.manifest()), 0.5, 0.25
)


@pytest.mark.parametrize("record", [RECORD, ScoringRecord(ScoringConfig())])
def test_a_scoring_record_comes_back_from_json(record):
    assert ScoringRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_fields_of_a_newer_version_are_named_wherever_they_are():
    values = RECORD.to_dict()
    for wrong, kind in (
        (values | {"new": 1}, "ScoringRecord"),
        (values | {"config": values["config"] | {"new": 1}}, "ScoringConfig"),
        (values | {"run": values["run"] | {"new": 1}}, "RecordedRun"),
    ):
        with pytest.raises(ValueError, match=rf"{kind} has no field 'new': .* upgrade hf-prune"):
            ScoringRecord.from_dict(wrong)


def test_fields_that_are_missing_are_named():
    with pytest.raises(ValueError, match="ScoringRecord lacks the field 'config'"):
        ScoringRecord.from_dict({})
    with pytest.raises(ValueError, match="RecordedRun lacks the field 'model', 'optimizer'"):
        ScoringRecord.from_dict(RECORD.to_dict() | {"run": {}})


def test_what_was_observed_comes_back_from_json():
    observed = Observed("accuracy", full=0.5, interval=[0.1, 0.2], seeds=3)
    assert Observed.from_dict(json.loads(json.dumps(observed.to_dict()))) == observed


def test_the_columns_follow_from_the_name_of_the_first():
    columns = InfluenceColumns("mine")
    assert (
        list(columns)
        == ["mine", "mine_norm", "mine_eval_loss", "mine_features", "mine_check"]
        == [columns.vector, columns.norm, columns.eval_loss, columns.features, columns.check]
    )
    assert columns.among(["text", "mine_norm", "mine"]) == ["mine", "mine_norm"]
