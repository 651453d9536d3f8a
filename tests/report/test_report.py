import base64
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow

from hf_prune.publish.provenance import build
from hf_prune.report import (
    Example,
    Gap,
    ReportData,
    gaps,
    how_it_was_made,
    observed,
    plot_curve,
    plot_gap,
    render_report,
    selection_parts,
    write_report,
)
from hf_prune.report.examples import MOST
from hf_prune.report.media import LONGEST_TEXT
from hf_prune.report.page import SCRIPT
from hf_prune.selection import prune, select
from hf_prune.selection.evidence import Candidate, Evidence
from hf_prune.verification import Arm, MeanInterval, Retraining, Verification

EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)> & \'"'
VOID = {"meta", "img", "br", "link", "path", "use", "rect", "input"}


class Page(HTMLParser):
    """Reads a page as a browser does, and notes its elements, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def scored(rows: int = 40, *, image: bool = False, text: str = "a text") -> Dataset:
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(rows, 8)).astype("float32")
    columns = {
        "text": [f"{text} {i}" for i in range(rows)],
        "label": [i % 2 for i in range(rows)],
        "influence": influence.tolist(),
        "influence_norm": np.linalg.norm(influence, axis=1).tolist(),
        "influence_eval_loss": rng.normal(size=rows).tolist(),
    }
    features = Features(
        text=Value("string"),
        label=ClassLabel(names=["no", EVIL]),
        influence=List(Value("float32"), length=8),
        influence_norm=Value("float32"),
        influence_eval_loss=Value("float32"),
    )
    if image:
        columns["image"] = [Pillow.fromarray(np.full((8, 8), i, "uint8")) for i in range(rows)]
        features["image"] = Image()
    return Dataset.from_dict(columns, features=features)


def estimate(*values: float) -> MeanInterval:
    return MeanInterval.of(values)


def verified(full, pruned, random, *, metric="accuracy", rows=20, better=True) -> Verification:
    arms = [
        None if values is None else Arm(n, tuple(Retraining(i, a, 0.1, 9, 1.0) for i, a in enumerate(values)))
        for n, values in ((40, full), (rows, pruned), (rows, random))
    ]
    return Verification(metric, better, "epochs", *arms)


def probe() -> Evidence:
    best = Candidate(EVIL, 0.9, 0.05, 0.01, 0.02, 0.005, 3)
    candidates = (best, Candidate("balanced", 0.88, 0.03, 0.01, 0.0, 0.0, 3))
    return Evidence(EVIL, "epochs", 200, "0" * 64, 12, 6.0, candidates, EVIL, beats_random=True)


def whole() -> ReportData:
    dataset = scored(text=EVIL)
    parts = selection_parts(select(dataset, 0.5), dataset) | {"evidence": probe()}
    return ReportData(
        title=EVIL,
        lead=EVIL,
        highlights=[(EVIL, EVIL, EVIL)],
        verified={0.5: verified([0.9, 0.92], [0.875, 0.895], [0.8, 0.82], metric=EVIL)},
        gaps=[Gap(0.5, 0.01, estimate(0.02, 0.03))],
        made=[(EVIL, EVIL)],
        notes=[EVIL],
        **parts,
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(whole())


def test_what_comes_from_data_is_shown_and_never_run(page):
    read = Page(page)
    assert page.count("<script>") == 1
    assert f"<script>{SCRIPT}</script>" in page
    assert read.tags["script"] == 2  # and the rows as JSON, which no text can end
    assert read.tags["img"] == 0
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    # title and h1, lead, tile x 3, heading of the curve, made x 2, note, rows and labels of rows
    assert read.text.count(EVIL) > 20


def test_page_needs_no_network_and_forbids_it(page):
    assert not re.search(r"https?:|//\w|@import", page)
    read = Page(page)
    for tag, name, value in read.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert "default-src 'none'" in next(value for _, name, value in read.attributes if value.startswith("default-src"))


def test_page_is_well_formed_and_its_ids_are_unique_and_resolved(page):
    read = Page(page)
    assert read.open == []
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)
    assert used
    assert {a or b for a, b in used} <= set(ids)


def test_every_part_is_there(page):
    text = Page(page).text
    pictures = ("against the pruned share", "Predicted and observed", "Influence of rows", "Classes, 50% pruned")
    rows = ("Hardest rows that were kept", "Most redundant rows", "Most harmful rows", "All rows")
    for title in (*pictures, *rows, "Certificate", "How it was made"):
        assert title in text
    assert Page(page).tags["svg"] == 4
    assert "0.885 ± 0.014" in text
    assert "+0.0500 ± 0.0100" in text  # the probe's best candidate over random rows
    assert "(taken)" in text


@pytest.mark.parametrize(("budget", "said"), [("epochs", True), ("steps", False)])
def test_a_prediction_beside_trainings_of_fewer_steps_is_said_to_be_of_as_many(budget, said):
    arms = [Arm(rows, (Retraining(0, 0.9, loss, 10, 1.0),)) for rows, loss in ((40, 0.1), (20, 0.3))]
    selection = select(scored(), 0.5)
    found = gaps(0.5, selection, Verification("accuracy", True, budget, *arms))
    assert found[0].predicted == selection.certificate.predicted_eval_loss_change
    assert found[0].observed.mean == pytest.approx(0.2)
    assert ("thus fewer steps" in Page(render_report(ReportData(title="t", gaps=found))).text) is said


def test_pictures_take_their_colours_and_font_from_the_theme(page):
    pictures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--pruned)" in pictures
    assert not re.search(r"#[0-9a-f]{6}", pictures)
    assert "DejaVu" not in pictures
    assert "prefers-color-scheme: dark" in page


BETTER = verified([0.95, 0.96, 0.97], [0.949, 0.962, 0.968], [0.91, 0.92, 0.93], rows=28)
WORSE = verified([0.95, 0.96, 0.97], [0.90, 0.91, 0.92], [0.905, 0.90, 0.93], rows=8)
BEHIND = verified([0.95, 0.96, 0.97], [0.90, 0.91, 0.92], [0.93, 0.941, 0.95])
LOSS = verified([0.30, 0.31, 0.32], [0.40, 0.41, 0.43], [0.50, 0.52, 0.53], metric="loss", better=False)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {0.3: BETTER, 0.8: WORSE},
            r"30% of the rows can go without measurable loss of accuracy \(up to 0\.\d points are not excluded\); the "
            r"kept rows are ahead of random ones at 30% by 4\.0 points \[3\.\d, 4\.\d\]\.",
        ),
        (
            {0.8: WORSE},
            r"Leaving out 80% of the rows costs 5\.0 points \[.*\] of accuracy; .* not told apart from as many",
        ),
        ({0.5: BEHIND}, r"Leaving out 50% .* are behind random ones at 50% by 3\.0 points"),
        (
            {0.5: LOSS},
            r"Leaving out 50% of the rows costs 0\.103 \[.*\] of loss; .* ahead of random ones at 50% by 0\.103",
        ),
        (
            {0.9: verified([0.9, 0.95, 0.92], [0.9, 0.5, 0.7], [0.5, 0.6, 0.7], rows=4)},
            r"3 seeds do not tell what leaving out 90% of the rows costs: 22\.3 points .* accuracy; .* not told",
        ),
        ({0.5: verified([0.9], [0.8], [0.7])}, r"One training an arm shows no difference beyond chance"),
        (
            {0.5: verified([0.9, 0.9], [0.8, 0.8], None)},
            r"Leaving out 50% .*; random rows were not trained on for comparison\.",
        ),
    ],
)
def test_the_first_line_is_the_verdict_of_the_retrainings(found, said):
    text = Page(render_report(ReportData(title="t", verified=found))).text
    assert re.search(rf"t\s+{said}", text), text[:600]


def test_without_retraining_the_first_line_says_so():
    dataset = scored()
    text = Page(render_report(ReportData(title="t", **selection_parts(select(dataset, 0.5), dataset)))).text
    assert re.search(r"t\s+Nothing was retrained .* leaving out 50% of the rows costs is not known", text)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (
            {"beside_random": 0.07, "beside_random_interval": [0.02, 0.12]},
            "better than as many random rows: +7.0 points",
        ),
        ({"pruned": 0.88}, "was retrained on these rows; whether random ones would do as well is not known"),
    ],
)
def test_without_verifications_the_first_line_is_what_the_provenance_says_of_them(known, said):
    rows = prune(scored(), keep=0.5)
    provenance = build(rows, observed={"metric": "accuracy", "seeds": 4, "greater_is_better": True} | known)
    data = ReportData(title="t", observed=observed(provenance), **selection_parts(rows.selection))
    text = Page(render_report(data)).text
    assert said in text
    assert "Kept 20 of 40 rows" in text
    assert "Nothing was retrained" not in text
    assert observed(build(rows)) is None


def test_no_interval_leaves_what_a_share_can_be():
    found = {0.5: verified([0.99, 0.5], [0.99, 0.6], [0.9, 0.3])}
    assert max(abs(end) for end in found[0.5].pruned.metric.interval) > 1.7
    figure = plot_curve(found)
    low, high = figure.axes[0].get_ylim()
    assert low >= 0
    assert high <= 1.01
    ends = np.concatenate([line.get_ydata() for line in figure.axes[0].lines])
    assert ends.min() >= 0
    assert ends.max() <= 1


def test_predicted_and_observed_have_the_same_scale():
    axes = plot_gap([Gap(0.5, 0.01, estimate(0.2, 0.3))]).axes[0]
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_aspect() == 1.0


def test_dropped_rows_have_a_reason_and_stand_beside_what_covers_them():
    dataset = scored(60, text="five words or more of")
    rng = np.random.default_rng(1)
    values = dataset.to_dict()
    for place, other in ((1, 0), (3, 2), (5, 4), (7, 6), (9, 8)):
        values["influence"][place] = (np.array(values["influence"][other]) + 0.01 * rng.normal(size=8)).tolist()
    for place in (1, 3):
        values["text"][place] = values["text"][place - 1]
    values["text"][5] = values["text"][4] + " again"
    values["label"][1], values["label"][3] = values["label"][0], 1 - values["label"][2]
    rows = Dataset.from_dict(values, features=dataset.features)
    chosen = select(rows, 0.5, seed=0)
    dropped = np.array([1, 3, 5, 7, 9, *range(20, 45)])
    kept = np.setdiff1d(np.arange(60), dropped)
    selection = replace(chosen, keep_indices=kept, drop_indices=dropped, ids_digest=None)
    parts = selection_parts(selection, rows)
    reasons = {row.row: row.reason for row in parts["listed"]}
    assert reasons[1] == "duplicate of row 0"
    assert reasons[3] == "duplicate of row 2, labelled otherwise"
    assert reasons[5] == "near-duplicate of row 4, labelled otherwise"
    assert reasons[7] == "near-duplicate of row 6, labelled otherwise" or reasons[7] == "covered by row 6"
    assert all(bool(reasons[row]) == (row in dropped) for row in range(60))
    assert [(pair.dropped.row, pair.kept.row) for pair in parts["pairs"][:2]] == [(1, 0), (3, 2)]
    page = Page(render_report(ReportData(title="t", **parts)))
    assert "Row 1: duplicate of row 0" in page.text


def test_rows_that_were_dropped_as_harmful_are_said_to_be_mislabelled():
    rows = scored(40)
    aum = [(-1.0 if i < 4 else 1.0) for i in range(40)]
    rows = rows.add_column("aum", aum).add_column("loss", [9.0] * 40)
    parts = selection_parts(select(rows, 0.5, harmful="drop"), rows)
    assert all("mislabelled?" in row.reason for row in parts["listed"] if row.row < 4)
    assert not any("mislabelled?" in row.reason for row in parts["listed"] if row.row >= 4)


def test_more_rows_than_a_page_holds_are_said_to_be_more(monkeypatch):
    monkeypatch.setattr("hf_prune.report.examples.MOST_LISTED", 25)
    rows = scored(40)
    selection = select(rows, 0.5)
    parts = selection_parts(selection, rows)
    assert len(parts["listed"]) == 25
    assert {row.row for row in parts["listed"]} >= set(selection.drop_indices.tolist())
    assert "25 of 40 rows are listed" in Page(render_report(ReportData(title="t", **parts))).text


def test_a_page_with_an_address_has_a_picture_for_previews(tmp_path):
    data = ReportData(title="My <page>", verified={0.3: BETTER}, address="https://me.github.io/x/report.html")
    file = write_report(tmp_path / "report.html", data)
    page = file.read_text(encoding="utf-8")
    assert '<meta property="og:title" content="My &lt;page&gt;">' in page
    assert '<meta property="og:image" content="https://me.github.io/x/report.png">' in page
    assert Pillow.open(tmp_path / "report.png").size == (1200, 630)
    with pytest.raises(ValueError, match="not where a page can be"):
        render_report(ReportData(title="t", address="report.html"))


def test_how_it_was_made_shows_words_and_no_dicts():
    rows = scored()
    provenance = build(prune(rows, 0.5, harmful="keep"))
    lines = dict(how_it_was_made(provenance))
    assert not [value for value in lines.values() if re.search(r"[{}']", value)]
    assert "difficulty no preference: the kept rows represent all" in lines["chosen for it"]
    assert lines["selection"] == "keep 0.5"


def test_an_empty_report_speaks_of_nothing_it_does_not_know():
    text = Page(render_report(ReportData(title="t"))).text
    for title in ("pictures", "Certificate", "Rows", "How it was made", "Notes"):
        assert title not in text


def test_images_are_shown_as_inline_png():
    dataset = scored(image=True)
    parts = selection_parts(select(dataset, 0.5), dataset)
    rows = [row for pair in parts["pairs"] for row in (pair.dropped, pair.kept)]
    rows += [row for _, _, rows in parts["examples"] for row in rows]
    read = Page(render_report(ReportData(title="t", **parts)))
    sources = [value for tag, name, value in read.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == len(rows) > 0
    for row, source in zip(rows, sources, strict=True):
        picture = Pillow.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
        assert picture.getpixel((0, 0)) == row.row


def test_examples_are_the_extremes():
    dataset = scored()
    selection = select(dataset, 0.5)
    (_, _, harmful), (_, _, hardest), (_, _, redundant) = selection_parts(selection, dataset)["examples"]
    norm, loss = np.array(dataset["influence_norm"]), np.array(dataset["influence_eval_loss"])
    assert [row.row for row in redundant] == np.argsort(norm)[:MOST].tolist()
    assert [row.row for row in harmful] == [i for i in np.argsort(loss) if loss[i] < 0][:MOST]
    kept = selection.keep_indices
    assert [row.row for row in hardest] == kept[np.argsort(-norm[kept])][:MOST].tolist()
    assert all(row.kept for row in hardest)
    assert {row.kept for row in redundant + harmful} == {True, False}
    assert redundant[0].text == f"a text {redundant[0].row}"


def test_kept_rows_alone_are_numbered_as_in_the_source():
    dataset = scored()
    selection = select(dataset, 0.5)
    alone = selection_parts(selection, dataset.select(selection.keep_indices.tolist()))
    together = selection_parts(selection, dataset)
    assert alone["examples"][1] == together["examples"][1]
    assert [row.row for row in alone["listed"]] == selection.keep_indices.tolist()
    assert alone["dropped_norms"] is None
    np.testing.assert_array_equal(alone["kept_norms"], together["kept_norms"])
    with pytest.raises(ValueError, match="The dataset has 7 rows"):
        selection_parts(selection, dataset.select(range(7)))


def test_long_texts_are_cut():
    dataset = scored(text="x" * 10 * LONGEST_TEXT)
    example: Example = selection_parts(select(dataset, 0.5), dataset)["examples"][0][2][0]
    assert len(example.text) < LONGEST_TEXT + 10


def test_a_dataset_without_columns_to_show_still_has_a_report():
    dataset = scored().select_columns(["influence", "influence_norm"])
    parts = selection_parts(select(dataset, 0.5), dataset)
    assert parts["classes"] == {}
    assert "norm" in Page(render_report(ReportData(title="t", **parts))).text


def test_report_is_written_whole_into_a_new_directory(tmp_path):
    file = write_report(tmp_path / "new" / "report.html", ReportData(title="t"))
    assert file.read_text(encoding="utf-8") == render_report(ReportData(title="t"))
    assert list(file.parent.iterdir()) == [file]
