"""What was found is listed, saved and loaded, and shown without running what rows hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from rich.console import Console
from safetensors.numpy import load_file, save_file

from hf_prune import Attribution
from hf_prune._core.config import AttributionConfig
from hf_prune.attribution.result import Query, RowText
from hf_prune.attribution.words import RowWords
from hf_prune.cli.show import attribution_table
from hf_prune.report import ReportData, attributed_queries, render_report
from tests.attribution.facts import tokenizer

EVIL = "<script>alert('[bold]')</script>"


def found(tokens: str | None = None) -> Attribution:
    """Two queries about six rows, of which the largest are known."""
    influence = np.array([[0.1, -0.3, 0.5, 0.0, 0.2, -0.1], [0, 0, 0, 0, 0, 1]], np.float32)
    rows = {row: RowText(10 + row, f"{EVIL} {row}", "good" if row % 2 else None, ("a", "b")) for row in range(6)}
    spoken = np.stack([influence[0] + 1, influence[0] - 1])
    parts = [
        {row: np.array([influence[0, row], 0], np.float32) for row in shown} for shown in ((1, 2, 4, 5), (0, 1, 5))
    ]
    return Attribution(
        AttributionConfig(version="v", engine="dense", k=2, tokens=tokens),
        (Query("said", EVIL, 1.5, ("sa", "id")), Query("only said", None, 0.25, ("only",))),
        influence,
        rows,
        "digest",
        (spoken, influence[1:]) if tokens == "query" else (),
        tuple(parts) if tokens == "row" else (),
        doubts=(f"{EVIL} may not hold",),
    )


def test_the_rows_of_the_largest_influence_come_first_and_of_equal_ones_the_earlier():
    one = found()
    assert [row.row for row in one.top(0)] == [2, 4]
    assert [row.row for row in one.bottom(0)] == [1, 5]
    assert [row.row for row in one.top(1)] == [5, 0]
    assert [row.row for row in one.bottom(1)] == [0, 1]
    assert [row.row for row in one.top(0, 1)] == [2]
    assert one.top(0)[0].influence == pytest.approx(0.5)
    assert one.top(0)[0].content.id == 12
    with pytest.raises(ValueError, match=r"k=3 is not within 1\.\.2"):
        one.top(0, 3)


def test_a_dataset_has_a_line_for_each_row_shown():
    rows = found().to_dataset()
    assert len(rows) == 2 * 4
    assert rows[0] == {
        "query": 0,
        "prompt": EVIL,
        "completion": "said",
        "side": "top",
        "rank": 1,
        "row": 2,
        "id": 12,
        "influence": 0.5,
        "text": f"{EVIL} 2",
        "label": None,
    }
    assert rows["side"][:4] == ["top", "top", "bottom", "bottom"]


@pytest.mark.parametrize("tokens", [None, "query", "row"])
def test_what_is_saved_is_loaded(tokens: str | None, tmp_path: Path):
    one = found(tokens)
    one.save(tmp_path / "new" / "attribution.safetensors")
    other = Attribution.load(tmp_path / "new" / "attribution.safetensors")
    for name in ("config", "queries", "rows", "trajectory_digest", "doubts"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.influence, other.influence)
    for own, read in zip(one.token_influence, other.token_influence, strict=True):
        np.testing.assert_array_equal(own, read)
    for own, read in zip(one.row_parts, other.row_parts, strict=True):
        assert own.keys() == read.keys()
        assert all(np.array_equal(own[row], read[row]) for row in own)
    assert one.to_dataset().to_list() == other.to_dataset().to_list()


def test_a_file_that_is_damaged_newer_or_another_is_refused(tmp_path: Path):
    file = tmp_path / "attribution.safetensors"
    with pytest.raises(FileNotFoundError):
        Attribution.load(file)
    found().save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="attribute again"):
        Attribution.load(file)
    save_file({"influence": np.zeros((1, 1), np.float32)}, file)
    with pytest.raises(ValueError, match="attribute again"):
        Attribution.load(file)
    file.write_bytes(whole)
    arrays = load_file(file)
    head = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["hf_prune.attribution"]
    for change, message in (
        ({"schema_version": 1}, "another version"),
        ({"schema_version": 9}, "another version"),
        ({"doubts": [1]}, "doubts"),
        ({"queries": [*json.loads(head)["queries"], json.loads(head)["queries"][0]]}, "for 3 queries"),
        ({"config": json.loads(head)["config"] | {"k": 0}}, "k must be"),
        ({"rows": {"0": {"id": 1, "text": None, "colour": "red"}}}, "has no field 'colour'"),
    ):
        save_file(arrays, file, {"hf_prune.attribution": json.dumps(json.loads(head) | change)})
        with pytest.raises(ValueError, match=message):
            Attribution.load(file)


def test_a_directory_is_no_file_to_save_in(tmp_path: Path):
    with pytest.raises(ValueError, match=r"pass a file, such as .*attribution\.safetensors"):
        found().save(tmp_path)


def test_a_notebook_a_page_and_a_terminal_show_rows_and_run_nothing_of_theirs():
    for tokens in (None, "row"):
        one = found(tokens)
        html = one._repr_html_()
        assert "The scores may not hold" in html
        page = render_report(ReportData(title="t", attributed=attributed_queries(one)))
        for shown in (html, page):
            assert "<script>alert" not in shown
            assert "&lt;script&gt;alert" in shown
            assert "+0.5" in shown
            assert "-0.3" in shown
        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(attribution_table(one, 0))
        assert EVIL in console.export_text()
    assert page.count("<mark>a</mark>") == 8  # each of the rows shown acted by its first token alone
    assert "<mark>b</mark>" not in page
    assert "Why did it say that?" in page


def test_texts_that_are_long_are_shortened_where_they_are_shown():
    one = found()
    one = replace(one, rows={row: RowText(row, "x" * 5000) for row in one.rows})
    assert "x" * 1000 not in one._repr_html_()
    assert "x" * 1000 not in render_report(ReportData(title="t", attributed=attributed_queries(one)))
    assert one.top(0)[0].content.text == "x" * 5000


def test_rows_are_shown_by_their_texts_classes_or_tokens():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    reviews = Dataset.from_dict({"text": ["fine", "dull"], "label": [1, 0]}, features=features)
    assert RowWords(reviews)([1, 0]) == {1: RowText(1, "dull", "bad"), 0: RowText(0, "fine", "good")}
    words = tokenizer()
    ids = [words(text)["input_ids"] for text in ("it is", "of course")]
    tokens = Dataset.from_dict({"input_ids": ids, "number": [7, 9]})
    assert RowWords(tokens, words, "number")([1]) == {1: RowText(9, "of course")}
    assert RowWords(tokens)([1]) == {1: RowText(1, None)}
    chat = Dataset.from_list([{"messages": [{"role": "user", "content": "hi"}]}])
    assert RowWords(chat)([0])[0].text == "user: hi"
