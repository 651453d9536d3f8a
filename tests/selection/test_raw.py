"""A selection among prepared rows picks the same rows among raw ones, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune import Selection, prune, select, with_example_ids
from hf_prune.selection import PrunedDataset
from tests.publish import samples

N = 60
RAW = Dataset.from_dict(
    {
        "text": [f"row {i} with {i * i} words" for i in range(N)],
        "label": [i % 2 for i in range(N)],
        "meta": [{"page": i, "tags": ["a"] * (i % 3)} for i in range(N)],
    }
)


def tokens(rows: Dataset, drop: Callable[[int], bool] = lambda i: False) -> Dataset:
    """What a Trainer gets: tokens next to what was there, some rows dropped, in another order."""
    made = rows.map(lambda row, i: {"input_ids": [i] * 4, "place": i}, with_indices=True)
    return made.filter(lambda row: not drop(row["place"])).shuffle(seed=1).flatten_indices()


def kept_texts(scored: Dataset, selection: Selection) -> list[str]:
    """The truth: texts of the kept rows, by the places that the tokens were made of."""
    places = sorted(scored["place"][int(i)] for i in selection.keep_indices)
    return [RAW["text"][i] for i in places]


def test_kept_rows_are_found_in_another_order_and_without_tokens_or_scores():
    scored = samples.scored(tokens(RAW))
    selection = select(scored, 0.5)
    pruned = selection.apply(RAW)
    assert isinstance(pruned, PrunedDataset)
    assert pruned["text"][:] == kept_texts(scored, selection)
    assert pruned.features == RAW.features
    assert pruned.selection.certificate == selection.certificate
    assert pruned.source_columns.keys() == set(RAW.column_names)
    by_position = RAW.select(selection.keep_indices.tolist())["text"][:]
    assert len(set(by_position) & set(pruned["text"])) < 30  # where taking positions would be wrong


@given(st.permutations(range(12)), st.sets(st.integers(0, 11), max_size=4), st.data())
@settings(max_examples=40, deadline=None)
def test_any_order_any_missing_rows_and_any_duplicates(order, missing, data):
    contents = data.draw(st.lists(st.integers(0, 3), min_size=12, max_size=12))
    raw = Dataset.from_dict({"text": [f"text {content}" for content in contents]})
    rows = raw.select([i for i in order if i not in missing])
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(len(rows), 4)).astype("float32")
    scored = rows.add_column("influence", list(influence)).add_column(
        "influence_norm", np.linalg.norm(influence, axis=1)
    )
    kept = prune(scored, keep=len(rows) // 2)
    pruned = kept.selection.apply(raw, unseen="drop")
    assert sorted(pruned["text"]) == sorted(kept["text"])
    every = kept.selection.apply(raw, unseen="keep")
    assert len(every) == len(kept) + len(missing)
    assert (pruned.selection.applied.unseen, every.selection.applied.unseen_kept) == (len(missing), bool(missing))


def test_rows_that_were_not_scored_need_a_word_and_get_one():
    scored = samples.scored(tokens(RAW, drop=lambda i: i % 6 == 0))
    selection = select(scored, 0.5)
    with pytest.raises(ValueError, match=r"10 of these 60 rows were not among those that were scored.*unseen='drop'"):
        selection.apply(RAW)
    dropped, kept = selection.apply(RAW, unseen="drop"), selection.apply(RAW, unseen="keep")
    assert dropped["text"][:] == kept_texts(scored, selection)
    assert set(kept["text"]) - set(dropped["text"]) == {RAW["text"][i] for i in range(0, N, 6)}
    assert "10 of the 60 rows were not among the 50 that were scored, and are kept unseen" in (
        kept.selection.certificate.explain()
    )
    assert repr(dropped.selection).startswith("Selection(kept 25 of 60 rows")
    with pytest.raises(ValueError, match="unseen='yes' is not known"):
        selection.apply(RAW, unseen="yes")


def test_a_column_of_text_may_have_got_an_ending():
    ended = tokens(RAW).map(lambda row: {"text": row["text"] + "<eos>"}).remove_columns(["label", "meta"])
    scored = samples.scored(ended)
    selection = select(scored, 0.5)
    assert selection.apply(RAW)["text"][:] == kept_texts(scored, selection)
    texts = {0: "one", 1: "one<eos>"}
    twice = RAW.map(lambda row, i: {"text": texts.get(i, row["text"])}, with_indices=True)
    prepared = twice.map(lambda row: {"text": row["text"].removesuffix("<eos>") + "<eos>"})
    prepared = prepared.remove_columns(["label", "meta"])
    with pytest.raises(ValueError, match="Rows 0 and 1 agree in text and differ in label, meta"):
        select(samples.scored(prepared), 0.5).apply(twice)


def test_an_id_tells_rows_whose_contents_are_gone():
    numbered = with_example_ids(RAW)
    bare = tokens(numbered).remove_columns(["text", "label", "meta"])
    scored = samples.scored(bare)
    selection = select(scored, 0.5)
    with pytest.raises(ValueError, match=r"No column of the raw rows is as it was.*with_example_ids"):
        selection.apply(RAW)
    pruned = selection.apply(numbered)
    assert pruned["text"][:] == kept_texts(scored, selection)
    assert pruned.column_names == RAW.column_names


def test_ids_that_were_given_to_other_rows_are_noticed():
    selection = select(samples.scored(tokens(with_example_ids(RAW))), 0.5)
    with pytest.raises(ValueError, match="Scored row 0 is not among these 60 rows"):
        selection.apply(with_example_ids(RAW.shuffle(seed=2)))


def test_a_changed_column_is_left_out_or_the_user_names_the_id():
    numbered = RAW.add_column("uid", [f"u{i}" for i in range(N)])
    lower = tokens(numbered).map(lambda row: {"text": row["text"].upper()})
    scored = samples.scored(lower)
    selection = select(scored, 0.5)
    assert selection.apply(numbered)["text"][:] == kept_texts(scored, selection)
    flipped = samples.scored(lower.map(lambda row: {"label": 1 - row["label"]}))
    selection = select(flipped, 0.5)
    with pytest.raises(ValueError, match=r"is not among these 60 rows.*on="):
        selection.apply(numbered)
    assert selection.apply(numbered, on="uid")["text"][:] == kept_texts(flipped, selection)
    with pytest.raises(ValueError, match="on= names the column 'id', which raw and scored rows do not share"):
        selection.apply(numbered, on=["id"])


def test_rows_that_cannot_be_told_apart_are_refused():
    twins = RAW.map(lambda row, i: {"text": "the same" if i in (4, 9) else row["text"]}, with_indices=True)
    selection = select(samples.scored(tokens(twins).remove_columns(["label", "meta"])), 0.5)
    with pytest.raises(ValueError, match="Rows 4 and 9 agree in text and differ in label, meta"):
        selection.apply(twins)


def test_parts_of_one_row_and_other_rows_are_refused():
    parts = concatenate_datasets([tokens(RAW), tokens(RAW).select([0])])
    with pytest.raises(ValueError, match="Several scored rows were made from row"):
        select(samples.scored(parts), 0.5).apply(RAW)
    with pytest.raises(ValueError, match="have 1 values of 'text' that none of these 59 rows has: pass all rows"):
        select(samples.scored(RAW), 0.5).apply(RAW.select(range(59)), unseen="drop")
    with pytest.raises(TypeError, match=r"apply takes the raw rows as a datasets\.Dataset, not a DatasetDict"):
        select(samples.scored(RAW), 0.5).apply(DatasetDict(train=RAW))


def test_a_selection_that_was_saved_can_be_applied(tmp_path: Path):
    ended = tokens(RAW).map(lambda row: {"text": row["text"] + "<eos>"}).remove_columns(["label", "meta"])
    scored = samples.scored(ended)
    select(scored, 0.5).save(tmp_path)
    loaded = Selection.load(tmp_path)
    pruned = loaded.apply(RAW)
    assert pruned["text"][:] == kept_texts(scored, loaded)
    assert pq.read_schema(tmp_path / "rows.parquet").names == ["text", "input_ids", "place"]
    pruned.selection.save(tmp_path / "raw")
    again = Selection.load(tmp_path / "raw")
    assert again == pruned.selection
    with pytest.raises(ValueError, match="does not know the rows it was made from"):
        again.apply(RAW)
    (tmp_path / "rows.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"rows\.parquet is damaged"):
        Selection.load(tmp_path)


def test_harmful_rows_are_named_by_their_raw_ids():
    rng = np.random.default_rng(3)
    scored = samples.scored(tokens(RAW))
    scored = scored.add_column("aum", rng.normal(-1, 1, N)).add_column("loss", rng.uniform(0, 3, N))
    selection = select(scored, 0.5, harmful="drop")
    dropped = selection.certificate.harm.dropped
    assert dropped
    found = selection.apply(RAW).selection.certificate.harm.dropped
    assert sorted(found) == sorted(scored["place"][i] for i in dropped)
