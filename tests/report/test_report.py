import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Pillow

from hf_prune.report import Curve, Example, Gap, ReportData, gaps, render_report, selection_parts, write_report
from hf_prune.report.examples import MOST
from hf_prune.report.media import LONGEST_TEXT
from hf_prune.report.page import SCRIPT
from hf_prune.selection import select
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


def probe() -> Evidence:
    best = Candidate(EVIL, 0.9, 0.05, 0.01, 0.02, 0.005, 3)
    candidates = (best, Candidate("balanced", 0.88, 0.03, 0.01, 0.0, 0.0, 3))
    return Evidence(EVIL, "epochs", 200, "0" * 64, 12, 6.0, candidates, EVIL, beats_random=True)


def whole() -> ReportData:
    dataset = scored(text=EVIL)
    parts = selection_parts(select(dataset, 0.5), dataset) | {"evidence": probe()}
    curve = Curve(EVIL, estimate(0.9, 0.92), {0.5: estimate(0.875, 0.895)}, {0.5: estimate(0.8, 0.82)})
    return ReportData(
        title=EVIL,
        lead=EVIL,
        highlights=[(EVIL, EVIL, EVIL)],
        curve=curve,
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
    pictures = ("against rate", "Predicted and observed", "Influence of rows", "Classes at rate 0.5")
    rows = ("Hardest rows that were kept", "Most redundant rows", "Most harmful rows")
    for title in (*pictures, *rows, "Certificate", "How it was made"):
        assert title in text
    assert Page(page).tags["svg"] == 4
    assert "0.8850 ± 0.0141" in text
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


def test_an_empty_report_speaks_of_nothing_it_does_not_know():
    text = Page(render_report(ReportData(title="t"))).text
    for title in ("pictures", "Certificate", "Rows", "How it was made", "Notes"):
        assert title not in text


def test_images_are_shown_as_inline_png():
    dataset = scored(image=True)
    parts = selection_parts(select(dataset, 0.5), dataset)
    rows = [row for _, _, rows in parts["examples"] for row in rows]
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
