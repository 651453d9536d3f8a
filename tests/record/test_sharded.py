"""A run under FSDP2 leaves the record that the same run leaves under DDP."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_prune import add_influence
from hf_prune.trajectory import Trajectory, read_visits
from hf_prune.trajectory.snapshots import samples_of
from tests import toys
from tests.launch import launch
from tests.record import two_sharded
from tests.record.two_sharded import PAIRS, ROWS, loaded_sharded

RUNS = [name for name in PAIRS if loaded_sharded() or "loaded" not in name]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharded")
    launch("tests.record.two_sharded", directory)
    return directory


def record(name: str, directory: Path) -> Trajectory:
    return Trajectory.open(directory / name.replace(" ", "-") / "t")


@pytest.mark.parametrize("name", RUNS)
def test_ids_weights_learning_rates_and_norms_are_those_of_ddp(name: str, launched: Path) -> None:
    sharded, plain = record(name, launched), record(PAIRS[name], launched)
    assert len(sharded) == len(plain) == 6
    for ours, theirs in zip(sharded.steps(), plain.steps(), strict=True):
        assert [batch.ids for batch in ours.micro_batches] == [batch.ids for batch in theirs.micro_batches]
        assert [batch.scale for batch in ours.micro_batches] == [batch.scale for batch in theirs.micro_batches]
        assert ours.learning_rates == theirs.learning_rates
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
        losses = [batch.loss for batch in theirs.micro_batches]
        assert [batch.loss for batch in ours.micro_batches] == pytest.approx(losses, rel=1e-5)
    limit = plain.manifest.max_grad_norm
    assert any(step.grad_norm > limit for step in plain.steps())


def parts(record: Trajectory, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """The recorded parameters that a flat vector is made of, by name."""
    sizes = [parameter.size for parameter in record.manifest.parameters]
    return dict(zip([parameter.name for parameter in record.manifest.parameters], vector.split(sizes), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_snapshots_hold_the_whole_parameters(name: str, launched: Path) -> None:
    sharded, plain = record(name, launched), record(PAIRS[name], launched)
    known = [parameter for parameter in plain.manifest.parameters if parameter in sharded.manifest.parameters]
    assert list(sharded.manifest.parameters) == known
    assert len(known) == len(plain.manifest.parameters) or name == "part of bert"
    assert sharded.manifest.model == plain.manifest.model
    assert sharded.manifest.label_names == plain.manifest.label_names
    assert sharded.snapshot_steps == plain.snapshot_steps
    assert len(plain.snapshot_steps) > 3
    for step in plain.snapshot_steps:
        ours, theirs = parts(sharded, sharded.parameters_at(step)), parts(plain, plain.parameters_at(step))
        squares = parts(sharded, sharded.second_moment_at(step)), parts(plain, plain.second_moment_at(step))
        for each in ours:
            torch.testing.assert_close(ours[each], theirs[each], rtol=0, atol=1e-6)
            torch.testing.assert_close(squares[0][each], squares[1][each], rtol=1e-4, atol=1e-7)
        others = [samples_of(value for each, value in theirs.items() if each not in ours), plain.samples_at(step)]
        torch.testing.assert_close(sharded.samples_at(step), torch.cat(others), rtol=0, atol=1e-6)
    moved = sharded.parameters_at(6) - sharded.parameters_at(0)
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("name", RUNS)
def test_statistics_of_rows_are_those_of_ddp(name: str, launched: Path) -> None:
    sharded, plain = read_visits(record(name, launched)), read_visits(record(PAIRS[name], launched))
    assert (sharded.ids == plain.ids).all()
    np.testing.assert_allclose(sharded.loss, plain.loss, atol=1e-5)
    np.testing.assert_allclose(sharded.margin, plain.margin, atol=1e-5)


def test_frozen_parameters_are_sampled_whole(launched: Path) -> None:
    assert record("adapter by accelerate", launched).samples_at(6).numel() > 0
    assert record("part of bert", launched).samples_at(6).numel() > 0


def test_a_resumed_run_continues_its_record(launched: Path) -> None:
    resumed, whole = record("resumed", launched), record("bert", launched)
    assert (launched / "resumed" / "t" / "ledger" / "rank-00001-part-001.jsonl").exists()
    assert [step.ids.tolist() for step in resumed.steps()] == [step.ids.tolist() for step in whole.steps()]
    assert resumed.snapshot_steps == whole.snapshot_steps
    for step in whole.snapshot_steps:
        torch.testing.assert_close(resumed.parameters_at(step), whole.parameters_at(step), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, *_ in two_sharded.FULL])
def test_a_full_disk_of_one_process_ends_recording_in_both(name: str, launched: Path) -> None:
    place, raises = launched / f"full-{name}", "raise" in name
    told = [json.loads((place / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert ("cannot be written" in told[0]["said"]) == raises
    left = Trajectory.open(place / "t")
    assert 1 <= len(left) < 6
    assert told[0]["steps"] == 6 or (raises and told[0]["steps"] in (len(left), len(left) + 1))
    assert not left.manifest.complete
    assert raises or "cannot be written" in (left.manifest.stopped or "")


def test_a_failure_of_one_process_within_a_step_ends_recording_in_both_at_the_next_snapshot(launched: Path) -> None:
    told = [json.loads((launched / "failing" / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert "The model was given 3 sequences for a micro-batch of 4 rows" in told[0]["said"]
    assert told[0]["steps"] == 3
    assert len(Trajectory.open(launched / "failing" / "t")) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("parallel by hand", r"net\.0\.weight is spread over processes in another way than by FSDP2"),
        ("sharded in part", r"FSDP2 shards some trained parameters and not net\.0\.weight"),
        ("quantized optimizer", r"The state of torchao\.AdamW8bit cannot be gathered"),
        ("scoring", r"spread over processes \(FSDP2\), and scoring needs them whole"),
        *[("tensor parallelism when loaded", r"Tensor parallelism \(tp_size\) lets")] * loaded_sharded(),
    ],
)
def test_parameters_that_nothing_whole_can_be_made_of_are_refused_in_both(
    name: str, words: str, launched: Path
) -> None:
    for rank in range(2):
        assert re.search(words, json.loads((launched / f"refused-{rank}.json").read_text())[name])


SCORED = {"bert by accelerate": two_sharded.bert, "adapter by accelerate": None}


@pytest.mark.parametrize("name", [name for name in SCORED if name in RUNS])
def test_influence_is_that_of_ddp(name: str, launched: Path) -> None:
    found = []
    for run in (name, PAIRS[name]):
        trajectory = record(run, launched)
        make = SCORED[name] or (lambda: two_sharded.adapter(two_sharded.llama(launched)))
        model = with_parameters(make(), trajectory)
        scored = add_influence(
            toys.tokens(ROWS), trajectory, model=model, eval_dataset=toys.tokens(12, seed=1), directions=4
        )
        found.append(np.array(scored["influence"]))
    sharded, plain = found
    assert np.linalg.norm(sharded - plain) < 1e-4 * np.linalg.norm(plain)


def with_parameters(model: nn.Module, trajectory: Trajectory) -> nn.Module:
    """The model as it was trained, made of the record."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parts(trajectory, trajectory.parameters_at(len(trajectory))).items():
            own[name].copy_(value.view_as(own[name]))
    return model
