"""Probes: which rows to prefer is found out by retraining, fairly, within what was agreed, and once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import Trainer

from hf_prune import Probe, prune, select, verify
from hf_prune.publish import files
from hf_prune.publish.record import Record
from hf_prune.selection.evidence import BALANCED, Evidence, beats_random, preferred, weigh
from hf_prune.verification.probe import BLOCKS, FIRST_SEED, blocks, plan
from tests.toys import Mlp, arguments, vectors


def scored(wrong: np.ndarray) -> Dataset:
    """Rows with influence columns; the wrong ones have another label, and the smallest norms."""
    clean = vectors(len(wrong))
    labels = np.where(wrong, (np.array(clean["labels"]) + 1) % 3, clean["labels"])
    found = clean.remove_columns("labels").add_column("labels", labels)
    lengths = np.where(wrong, 1.0, 3.0)[:, None]
    influence = np.random.default_rng(0).normal(size=(len(wrong), 8)) * lengths
    influence *= lengths / np.linalg.norm(influence, axis=1, keepdims=True)
    columns = {"influence": influence, "influence_norm": np.linalg.norm(influence, axis=1)}
    for name, values in columns.items():
        found = found.add_column(name, values.astype("float32").tolist())
    return found


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return scored(np.zeros(120, dtype=bool))


@pytest.fixture(scope="module")
def dev() -> Dataset:
    return vectors(200, seed=1)


class Factory:
    """Notes each training it was asked for; `stop_at` is the one at which it is killed."""

    def __init__(self, scratch: Path, stop_at: int | None = None, **overrides: Any):
        self.scratch, self.stop_at, self.overrides = scratch, stop_at, {"num_train_epochs": 4} | overrides
        self.calls: list[tuple[int, tuple[Any, ...]]] = []

    def __call__(self, train_dataset: Dataset, seed: int) -> Trainer:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        assert train_dataset.column_names == ["x", "labels"]  # as they were trained on, without influence
        self.calls.append((seed, tuple(map(tuple, train_dataset["x"]))))
        options = {"learning_rate": 2e-2, "seed": seed} | self.overrides
        return Trainer(Mlp(), arguments(self.scratch, **options), train_dataset=train_dataset)


def test_every_candidate_is_compared_with_random_rows_of_the_same_seed(rows, dev, tmp_path):
    factory = Factory(tmp_path)
    evidence = select(rows, 0.5, probe=Probe(factory, dev, cost=8)).certificate.evidence
    assert evidence.trainings == len(factory.calls)
    assert evidence.cost == len(factory.calls) * 0.5 <= 8
    assert {len(chosen) for _, chosen in factory.calls} == {60}
    seeds = [seed - FIRST_SEED for seed, _ in factory.calls]
    assert seeds == [0] * 6 + [1] * 3 + [2] * 3 + [3] * 3  # five candidates and random rows, then the best beside two
    kept = [chosen for _, chosen in factory.calls]
    best, balanced, random = zip(*(kept[start : start + 3] for start in (6, 9, 12)), strict=True)
    assert set(best) < set(kept[:6])
    assert set(balanced) == {kept[0]}
    assert len({*random, kept[1]}) == 4  # drawn anew for each seed
    first = evidence.candidates[:2]
    assert [candidate.seeds for candidate in evidence.candidates] == [4, 4, 1, 1, 1]
    assert [candidate.name for candidate in first][1] == BALANCED
    assert first[1].ahead == 0


def test_what_beats_random_beyond_chance_is_taken_and_said(dev, tmp_path):
    rows = scored(np.arange(240) % 2 == 0)  # no label of the hardest half is wrong, and half of random ones
    pruned = prune(rows, 0.3, probe=Probe(Factory(tmp_path), dev, cost=5))
    evidence = pruned.selection.certificate.evidence
    assert evidence.chosen == evidence.candidates[0].name == "hardest"
    assert evidence.beats_random
    assert evidence.candidates[0].gain > 0.1
    lines = pruned.selection.certificate.explain().splitlines()
    assert lines[0].startswith("Better than as many random rows, tested by a probe's retraining: +")
    assert "hardest was +" in lines[2]
    again = select(rows, **pruned.selection.config.to_dict())  # the rows can be had without a probe
    np.testing.assert_array_equal(again.keep_indices, pruned.selection.keep_indices)


def test_without_evidence_the_balanced_choice_is_taken(rows, dev, tmp_path):
    factory = Factory(tmp_path, learning_rate=0.0)  # nothing is learned, so nothing differs
    selection = select(rows, 0.5, probe=Probe(factory, dev))
    assert selection.certificate.evidence.chosen == BALANCED
    assert not selection.certificate.evidence.beats_random
    np.testing.assert_array_equal(selection.keep_indices, select(rows, 0.5).keep_indices)


def test_a_stopped_probe_goes_on_where_it_was(rows, dev, tmp_path):
    whole = Factory(tmp_path)
    expected = select(rows, 0.5, probe=Probe(whole, dev, directory=tmp_path / "whole"))
    stopped = Factory(tmp_path, stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        select(rows, 0.5, probe=Probe(stopped, dev, directory=tmp_path / "probe"))
    rest = Factory(tmp_path)
    assert select(rows, 0.5, probe=Probe(rest, dev, directory=tmp_path / "probe")) == expected
    assert len(rest.calls) == len(whole.calls) - 5


def test_equal_steps_are_the_recorded_runs(rows, dev, tmp_path):
    evidence = select(rows, 0.5, probe=Probe(Factory(tmp_path), dev, budget="steps", steps=6)).certificate.evidence
    assert (evidence.budget, evidence.cost) == ("steps", evidence.trainings)
    with pytest.raises(ValueError, match="for budget='steps' alone: pass both or neither"):
        Probe(Factory(tmp_path), dev, budget="steps")


def test_evidence_is_published_and_read_back(rows, dev, tmp_path):
    pruned = prune(rows, 0.5, probe=Probe(Factory(tmp_path), dev))
    files.write(pruned, tmp_path / "published")
    found = Record.open(str(tmp_path / "published")).selection().certificate.evidence
    assert found == pruned.selection.certificate.evidence
    assert Evidence.from_dict(found.to_dict()) == found
    assert "They were chosen by a probe" in (tmp_path / "published" / "README.md").read_text()


def test_verify_refuses_the_rows_that_the_probe_chose_on(rows, dev, tmp_path):
    pruned = prune(rows, 0.5, probe=Probe(Factory(tmp_path), dev))
    plain = rows.select_columns(["x", "labels"])
    with pytest.raises(ValueError, match="chose the pruned rows on this eval_dataset"):
        verify(Factory(tmp_path), plain, pruned, eval_dataset=dev)


def test_a_probe_that_cannot_be_paid_or_is_not_needed_is_refused(rows, dev, tmp_path):
    with pytest.raises(ValueError, match="a comparison takes 6: raise cost"):
        select(rows, 0.5, probe=Probe(Factory(tmp_path), dev, cost=2))
    with pytest.raises(ValueError, match="A probe finds out what to prefer, which hard already sets"):
        select(rows, 0.5, hard=0.5, probe=Probe(Factory(tmp_path), dev))


@pytest.mark.parametrize(
    ("trainings", "planned"), [(6, (1, 1)), (8.9, (3, 1)), (9, (4, 1)), (11, (4, 1)), (12, (4, 2)), (15, (4, 3))]
)
def test_a_plan_is_within_what_is_paid(trainings: float, planned: tuple[int, int]):
    assert plan(5, trainings) == planned
    assert 2 + planned[0] + 3 * planned[1] <= trainings


def test_blocks_share_out_every_row_once():
    rows = Dataset.from_dict({"x": list(range(47))})
    parts = blocks(rows)
    assert len(parts) == BLOCKS
    assert sorted(x for part in parts.values() for x in part["x"]) == list(range(47))
    assert {len(part) for part in parts.values()} == {2, 3}
    assert len(blocks(rows.select(range(3)))) == 3


def test_differences_are_paired_and_their_error_takes_seeds_and_rows_as_drawn():
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(3, 20)) for name in ("random", BALANCED, "a")} | {"b": rng.normal(size=(1, 20))}
    best, balanced, other = weigh(values, 1)
    assert [(c.name, c.seeds) for c in (best, balanced, other)] == [("a", 3), (BALANCED, 3), ("b", 1)]
    over_random = values["a"] - values["random"]
    over_balanced = values["a"] - values[BALANCED]
    assert best.gain == pytest.approx(over_random.mean())
    assert best.ahead == pytest.approx(over_balanced.mean())
    seeds = (over_random.mean(1).var(ddof=1) + over_balanced.mean(1).var(ddof=1)) / 2
    assert best.error**2 == pytest.approx(seeds / 3 + over_random.mean(0).var(ddof=1) / 20)
    single = values["b"][0] - values["random"][0]
    assert other.gain == pytest.approx(single.mean())
    assert other.error**2 == pytest.approx(seeds + single.var(ddof=1) / 20)
    assert weigh(values, -1)[0].gain == pytest.approx(-over_random.mean())


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_chance_alone_rarely_looks_like_evidence(seeds: int):
    """The best of eight that are as good as random rows and the balanced choice, on rows of which some are hard."""
    rng = np.random.default_rng(0)
    taken = beyond = 0.0
    for _ in range(400):
        hard = rng.normal(size=20)

        def answers(seeds: int) -> np.ndarray:
            return hard + rng.normal(size=(seeds, 1)) * 0.3 + rng.normal(size=(seeds, 20))  # noqa: B023

        values = {str(number): answers(1) for number in range(8)}
        best = max(values, key=lambda name: float(values[name].sum()))
        values[best] = np.concatenate([values[best], answers(seeds - 1)])
        values |= {name: answers(seeds) for name in ("random", BALANCED)}
        found = weigh(values, 1)[0]
        beyond += beats_random(found) / 400
        taken += preferred(found) / 400
    assert beyond < 0.12  # the first seed, on which it was the best, is in its mean
    assert taken < 0.1
