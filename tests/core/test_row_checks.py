"""What is said of scored rows is true of them, or is withdrawn in words: whatever `datasets` or a user did to them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk

from hf_prune import TrajectoryCallback, add_influence, prune, prune_path, select
from hf_prune._core.scoring import claim_of, scoring_of, with_scoring
from hf_prune.publish import card, provenance
from tests import toys

N = 64


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("run")
    rows = toys.vectors(N).add_column("text", [f"row {i}" for i in range(N)])
    model = toys.Mlp()
    toys.train(model, rows, folder / "out", [TrajectoryCallback(folder / "t")], num_train_epochs=2)
    return add_influence(rows, folder / "t", model=model, eval_dataset=toys.vectors(16, seed=1), directions=8)


def altered(column: str, count: int, change: Callable[[Any], Any]) -> Callable[[Dataset], Dataset]:
    def alter(rows: Dataset) -> Dataset:
        def one(row: dict[str, Any], place: int) -> dict[str, Any]:
            return {column: change(row[column])} if place < count else {}

        return rows.map(one, with_indices=True, features=rows.features)

    return alter


def swapped(rows: Dataset, names: list[str]) -> Dataset:
    """Two rows with some of their values exchanged."""
    values = {name: rows.with_format("numpy")[name][:] for name in names}
    order = [1, 0, *range(2, N)]
    return rows.map(lambda row, i: {n: values[n][order[i]] for n in names}, with_indices=True, features=rows.features)


HOLDS: dict[str, Callable[[Dataset], Dataset]] = {
    "as it was": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=0),
    "two rows exchanged": lambda rows: rows.select([1, 0, *range(2, N)]).flatten_indices(),
    "taken apart and joined": lambda rows: concatenate_datasets([rows.select(range(40, N)), rows.select(range(40))]),
    "a column more": lambda rows: rows.map(lambda row: {"length": len(row["text"])}),
    "columns fewer": lambda rows: rows.remove_columns(["x", "influence_features", "influence_eval_loss"]),
    "another format": lambda rows: rows.with_format("torch"),
}
LEFT_OUT = "The choice was among {} rows, and the model was trained on 64: rows were left out before"
SAID: dict[str, tuple[Callable[[Dataset], Dataset], str]] = {
    "filtered": (lambda rows: rows.filter(lambda row: int(row["text"][4:]) < 45), LEFT_OUT.format(45)),
    "selected": (lambda rows: rows.select(range(0, N, 2)), LEFT_OUT.format(32)),
    "pruned": (lambda rows: prune(rows, 0.5), LEFT_OUT.format(32)),
    "repeated": (
        lambda rows: concatenate_datasets([rows, rows]),
        "128 rows, and the model was trained on 64: rows were added or",
    ),
    "inputs mapped": (
        altered("x", 5, lambda x: [2 * v for v in x]),
        "5 of these 64 rows were changed since .* x, labels",
    ),
    "text mapped": (
        altered("text", 6, lambda text: text.upper()),
        "6 of these 64 rows were changed .* did not get .text",
    ),
    "labels mapped": (altered("labels", 7, lambda y: (y + 1) % 3), "7 of these 64 rows were changed since"),
}
WITHDRAWN: dict[str, tuple[Callable[[Dataset], Dataset], int]] = {
    "forged norms": (altered("influence_norm", 3, lambda norm: norm + 1), 3),
    "forged vectors": (altered("influence", 4, lambda vector: [0.0] * 8), 4),
    "forged losses": (altered("influence_eval_loss", 2, lambda loss: -loss), 2),
    "forged features": (altered("influence_features", 6, lambda features: [1 + f for f in features]), 6),
    "scores exchanged": (lambda rows: swapped(rows, ["influence", "influence_norm"]), 2),
    "forged check sums": (altered("influence_check", 9, lambda check: check ^ (1 << 3)), 9),
}


def told(rows: Dataset) -> dict[str, Any]:
    return provenance.build(prune(rows, keep=0.5))


@pytest.mark.parametrize("name", HOLDS)
def test_what_leaves_every_row_as_it_was_leaves_the_claim(scored: Dataset, name: str):
    changed = HOLDS[name](scored)
    assert claim_of(changed, "influence").words == ()
    selection = select(changed, 0.5)
    assert selection.scoring == scoring_of(scored)
    assert not [note for note in selection.certificate.notes if "rows" in note and "scored" in note]


@pytest.mark.parametrize("name", SAID)
def test_rows_that_are_not_all_or_were_changed_are_counted_in_words(scored: Dataset, name: str):
    change, words = SAID[name]
    document = told(change(scored))
    assert document["training"]["run"]["n_rows"] == N
    text = card.render(document)
    for notes in (document["selection"]["certificate"]["notes"], [text.replace("\n", " ")]):
        assert len([note for note in notes if re.search(words, note)]) == 1


@pytest.mark.parametrize("name", WITHDRAWN)
def test_scores_that_were_altered_withdraw_the_claim(scored: Dataset, name: str):
    change, rows = WITHDRAWN[name]
    document = told(change(scored))
    assert document["influence"] is None
    assert document["training"] is None
    (note,) = [note for note in document["selection"]["certificate"]["notes"] if "add_influence wrote" in note]
    assert note.startswith(f"{rows} of these 64 rows have other scores")
    assert "have other scores than add\\_influence wrote" in card.render(document)


def test_every_rate_of_a_path_says_it(scored: Dataset):
    for pruned in prune_path(WITHDRAWN["forged norms"][0](scored), rates=(0.3, 0.5)).values():
        assert pruned.selection.scoring is None
        assert any("other scores" in note for note in pruned.selection.certificate.notes)


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_knowledge_survives_disk(scored: Dataset, tmp_path: Path, kind: str):
    if kind == "disk":
        scored.save_to_disk(str(tmp_path / "rows"))
        loaded = load_from_disk(str(tmp_path / "rows"))
    else:
        scored.to_parquet(tmp_path / "rows.parquet")
        files = str(tmp_path / "rows.parquet")
        loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    before, after = select(scored, 0.5), select(loaded, 0.5)
    assert after.certificate == before.certificate
    assert after.certificate.predicted_eval_loss_change == before.certificate.predicted_eval_loss_change
    assert after.scoring == before.scoring == scoring_of(scored)
    (filtered,) = claim_of(loaded.select(range(45)), "influence").words
    assert filtered.startswith(LEFT_OUT.format(45))


def test_what_json_loses_is_said(scored: Dataset, tmp_path: Path):
    scored.to_json(tmp_path / "rows.jsonl")
    loaded = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path))
    selection = select(loaded, 0.5)
    assert selection.scoring is None
    assert any(
        "JSON, CSV and pandas lose it, save_to_disk and Parquet keep it" in n for n in selection.certificate.notes
    )


def test_rows_without_check_sums_are_not_vouched_for(scored: Dataset):
    selection = select(scored.remove_columns("influence_check"), 0.5)
    assert selection.scoring == scoring_of(scored)
    assert any("There is no column 'influence_check'" in note for note in selection.certificate.notes)


def test_candidates_are_no_part_of_what_was_trained_on(tmp_path: Path):
    rows, pool, model = toys.vectors(N), toys.vectors(20, seed=5), toys.Mlp()
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    dev = toys.vectors(16, seed=1)
    parts = [
        add_influence(part, tmp_path / "t", model=model, eval_dataset=dev, directions=8, train_dataset=rows)
        for part in (pool.select(range(10)), pool.select(range(10, 20)))
    ]
    both = concatenate_datasets(parts)
    assert claim_of(both, "influence").words == ()
    assert claim_of(both, "influence").record.candidates


def test_rows_that_were_scored_in_different_ways_cannot_be_mixed(scored: Dataset):
    record = scoring_of(scored)
    other = with_scoring(scored, replace(record, config=replace(record.config, seed=7)))
    with pytest.raises(ValueError, match="influence_norm"):
        concatenate_datasets([scored, other])


@pytest.mark.parametrize("values", [["x"] * N, [None] * N, [0.5] * N])
def test_check_sums_that_are_none_vouch_for_nothing(scored: Dataset, values: list[Any]):
    forged = scored.remove_columns("influence_check").add_column("influence_check", values)
    assert claim_of(forged, "influence").record is None


def test_check_sums_follow_from_the_rows_alone(scored: Dataset, tmp_path: Path):
    scored.save_to_disk(str(tmp_path / "rows"))
    checks = np.array(load_from_disk(str(tmp_path / "rows"))["influence_check"])
    assert len(set(checks.tolist())) == N
    assert np.array_equal(checks[5:9], scored.select(range(5, 9))["influence_check"])


def test_rows_can_be_scored_again(tmp_path: Path):
    rows, held_out = toys.vectors(24), toys.vectors(8, seed=1)
    model = toys.Mlp()
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    once = add_influence(rows, tmp_path / "t", model=model, eval_dataset=held_out, directions=8)
    again = add_influence(once, tmp_path / "t", model=model, eval_dataset=held_out, directions=4)
    assert again.column_names == once.column_names
    assert (
        again["influence_check"][:]
        == add_influence(rows, tmp_path / "t", model=model, eval_dataset=held_out, directions=4)["influence_check"][:]
    )
    assert claim_of(again, "influence").record is not None
