"""The page in a real browser: headless Chromium, where it is installed."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_prune.report import Example, Gap, ReportData, media, selection_parts, write_report
from hf_prune.selection import select
from hf_prune.verification import MeanInterval
from tests.report.test_report import verified

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

EVIL = "<script>window.ran = true</script><img src=x onerror='window.ran = true'><svg onload='window.ran = true'>"
ROWS = 60
PART = 40
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def scored() -> Dataset:
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(ROWS, 8)).astype("float32")
    norm = np.linalg.norm(influence, axis=1)
    texts = [f"sentence number{i} {EVIL if i % 7 == 0 else 'about pears'}" for i in range(ROWS)]
    features = Features(
        text=Value("string"),
        label=ClassLabel(names=["negative", EVIL]),
        influence=List(Value("float32"), length=8),
        influence_norm=Value("float32"),
        influence_eval_loss=Value("float32"),
    )
    columns = {
        "text": texts,
        "label": [i % 2 for i in range(ROWS)],
        "influence": influence.tolist(),
        "influence_norm": norm.tolist(),
        "influence_eval_loss": rng.normal(size=ROWS).tolist(),
    }
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    dataset = scored()
    parts = selection_parts(select(dataset, 0.5), dataset)
    tone = media.sound({"array": np.sin(np.arange(4000) / 3), "sampling_rate": 8000})
    sounds = [Example(row=3, label=None, norm=1.0, eval_loss=None, kept=True, audio=tone)]
    parts["examples"] = [*parts["examples"], ("Sounds", "Rows to be heard.", sounds)]
    data = ReportData(
        title=f"Pruning report {EVIL}",
        lead=EVIL,
        highlights=[("92 %", "accuracy on all rows", EVIL)],
        verified={0.5: verified([0.91, 0.93, 0.92], [0.88, 0.9, 0.89], [0.85, 0.88, 0.86])},
        gaps=[Gap(0.5, 0.01, MeanInterval.of([0.02, 0.03, 0.01]))],
        made=[("source", EVIL)],
        notes=[EVIL],
        **parts,
    )
    return write_report(tmp_path_factory.mktemp("report") / "report.html", data).as_uri()


@contextmanager
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser, report):
    """The page, with what the console and failed requests said in `page.said`."""
    opened = browser.new_page(viewport=DESKTOP)
    opened.set_default_timeout(120_000)  # a busy machine is no failure
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("requestfailed", lambda request: opened.said.append(request.url))
    opened.goto(report)
    yield opened
    opened.close()


def shown(page) -> list[str]:
    """Texts of the rows that can be seen."""
    script = "rows => rows.filter((row) => row.checkVisibility()).map((row) => row.innerText)"
    return page.eval_on_selector_all("#row-list li", script)


def test_the_console_stays_silent_and_nothing_from_data_runs(page):
    page.wait_for_timeout(300)  # handlers of failing images would run by now
    assert page.said == []
    assert page.evaluate("window.ran") is None
    assert page.locator("main img").count() == 0
    assert EVIL in page.locator("h1").inner_text()


def test_a_sound_is_a_player_that_the_keyboard_reaches(page):
    player = page.get_by_label("sound of row 3")
    loaded = """player => new Promise(done => {
        player.onloadedmetadata = () => done(player.duration);
        player.onerror = () => done(player.error.message);
        player.load();
    })"""
    assert player.evaluate(loaded) == pytest.approx(0.5)
    assert player.is_visible()
    player.focus()
    assert page.evaluate("document.activeElement.tagName") == "AUDIO"
    assert page.said == []


def test_the_policy_stops_a_script_that_is_put_into_the_page(page):
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\">')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in page.said)


def test_searching_shows_the_rows_that_hold_every_word(page):
    assert len(shown(page)) == PART
    assert page.get_by_role("status").inner_text() == f"{ROWS} of {ROWS} rows match, {PART} shown."
    page.get_by_label("Search text").fill("SENTENCE number59")
    assert [text for text in shown(page) if "number59" in text] == shown(page)
    assert len(shown(page)) == 1  # a row that was not in the first part
    page.get_by_label("Search text").fill("nothing has this")
    assert shown(page) == []
    assert page.get_by_role("status").inner_text() == "No row matches."


def test_more_rows_are_shown_on_request_until_there_are_no_more(page):
    more = page.get_by_role("button", name="Show more rows")
    more.click()
    assert len(shown(page)) == ROWS
    assert not more.is_visible()


def test_filters_narrow_the_rows_together(page):
    page.get_by_label("Kept or dropped").select_option("dropped")
    dropped = shown(page)
    page.get_by_label("Class", exact=True).select_option("negative")
    found = shown(page)
    assert 0 < len(found) < len(dropped) == ROWS // 2
    assert all("dropped" in text and "negative" in text for text in found)
    page.get_by_label("Class", exact=True).select_option(EVIL)
    assert len(shown(page)) == len(dropped) - len(found)


def test_the_keyboard_reaches_the_rows_and_the_search(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the rows"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "row-search"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type("pears")
    assert all("pears" in text for text in shown(page))


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_keeps_a_reader_out(page, size, scheme):
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    page.get_by_text("The figures").click()
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_axe_would_find_a_picture_without_words(page):
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"data:,\">')")
    assert axe.Axe().run(page).violations_count == 1


def test_words_are_not_broken_where_they_fit(page):
    page.set_viewport_size(PHONE)
    heights = page.eval_on_selector_all("dd, .head span", "parts => parts.map((part) => part.getClientRects().length)")
    assert max(heights) == 1
    script = """() => [...document.querySelectorAll('.rows dd span')].map((word) => word.getClientRects().length)"""
    assert set(page.evaluate(script)) == {1}  # "dropped" stands in one line


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_is_as_wide_as_the_screen(page, size):
    page.set_viewport_size(size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_the_page_follows_the_readers_theme(page):
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(247, 248, 250)", "rgb(18, 21, 27)"]
