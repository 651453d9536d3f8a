"""What was published, read back: the same selection, which makes the same files again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hf_prune.publish import files, provenance
from hf_prune.publish.replay import Record, ReplayError
from hf_prune.selection import PrunedDataset, Selection, prune
from tests.publish import samples


@pytest.mark.parametrize("run", [None, samples.manifest(schedule={"name": "linear"})])
@pytest.mark.parametrize("options", [{"keep": 0.5}, {"keep": 12, "method": "random", "seed": 3}, {"epsilon": 0.5}])
def test_a_record_gives_the_selection_that_was_published(tmp_path, run, options):
    scored = samples.scored(run=run)
    pruned = prune(scored, **options)
    files.write(pruned, tmp_path)
    selection = Record.open(str(tmp_path)).selection()
    for name in ("config", "resolved", "certificate"):
        assert getattr(selection, name) == getattr(pruned.selection, name)
    assert selection.keep_indices.tolist() == pruned.selection.keep_indices.tolist()
    assert selection.drop_indices.tolist() == pruned.selection.drop_indices.tolist()
    if run is not None:
        assert selection.scoring.config == pruned.selection.scoring.config
        assert selection.scoring.held_out_curvature == pruned.selection.scoring.held_out_curvature


def test_the_selection_of_a_record_is_published_as_the_same_document(tmp_path):
    scored = samples.scored(run=samples.manifest(schedule={"name": "linear"}))
    first = files.write(prune(scored, keep=0.5), tmp_path)
    again = PrunedDataset.from_source(scored, Record.open(str(tmp_path)).selection())
    assert provenance.build(again, created=first["created"]) == json.loads(json.dumps(first))


@pytest.mark.parametrize("part", ["influence", "arguments"])
def test_a_field_that_this_version_does_not_know_is_named(tmp_path, part):
    files.write(prune(samples.scored(run=samples.manifest()), keep=0.5), tmp_path)
    file = tmp_path / "hf_prune" / "provenance.json"
    document: dict[str, Any] = json.loads(file.read_text())
    (document["influence"] if part == "influence" else document["selection"]["arguments"])["beam"] = 3
    file.write_text(json.dumps(document))
    with pytest.raises(ReplayError, match=f"does not match its schema: .*{part}"):
        Record.open(str(tmp_path))


def test_a_selection_can_be_made_without_the_rows(tmp_path):
    files.write(prune(samples.scored(), keep=0.5), tmp_path)
    assert isinstance(Record.open(str(tmp_path)).selection(), Selection)
