"""The Space in a real browser: the app as a process, what hf_prune made, a Hub on loopback, and hostile files."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import ClassLabel

from hf_prune.selection import select
from tests.hub_server import Hub
from tests.report.test_browser import CHROMIUM, DESKTOP, EVIL, PHONE, axe, chromium, scored
from tests.space.zips import zipped

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

ROOT = Path(__file__).parents[2]
PATIENCE = 120_000
"""Milliseconds: a busy machine is no failure."""
FRAME = "iframe[title=Report]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path]]:
    """A Hub, and a directory with what `made.py` made while the app was starting."""
    path = tmp_path_factory.mktemp("space")
    with Hub() as hub:
        environment = hub.environment(path / "home", PYTHONPATH=str(ROOT), GRADIO_ANALYTICS_ENABLED="False")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        with (path / "app.log").open("w") as log:
            app = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=ROOT / "space",
                env=environment | {"GRADIO_SERVER_PORT": port, "GRADIO_TEMP_DIR": str(path / "uploads")},
                stdout=log,
                stderr=log,
            )
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.space.made"],
                cwd=path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            for name in ("trajectory", "selection", "half"):
                zipped(path / f"{name}.zip", path / name)
            hub.space = f"http://127.0.0.1:{port}"
            _wait(app, hub.space, path / "app.log")
            yield hub, path
        finally:
            app.terminate()
            app.wait(60)


def _wait(app: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(PATIENCE // 500):
        assert app.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser, made):
    """The Space as a visitor finds it, with what was asked of other places in `page.elsewhere`."""
    opened = browser.new_page(viewport=DESKTOP)
    opened.set_default_timeout(PATIENCE)
    opened.elsewhere = []
    home = made[0].space

    def note(request) -> None:
        if not request.url.startswith((home, "data:", "blob:", "about:")):
            opened.elsewhere.append(request.url)

    opened.on("request", note)
    opened.goto(home)
    opened.locator(FRAME).wait_for()
    yield opened
    opened.close()


def told(page, *words: str) -> None:
    """Waits until the panel shows words."""
    for text in words:
        page.locator(".opened").get_by_text(text).first.wait_for()


def ask(page, name: str) -> None:
    page.get_by_label("A pruned dataset on the Hub").fill(name)
    page.get_by_role("button", name="Open").click()


def upload(page, file: Path) -> None:
    page.locator("input[type=file]").set_input_files(file)


def test_an_example_is_shown_at_once_and_nothing_comes_from_elsewhere(page):
    frame = page.frame_locator(FRAME)
    frame.get_by_text("rows can go without measurable loss").or_(
        frame.get_by_text("of the rows costs")
    ).first.wait_for()
    assert frame.locator("#row-list li").count() > 0  # its script is the one that the policy knows
    assert page.elsewhere == []


def test_the_example_of_a_run_shows_the_figures_of_its_ledger(page):
    page.get_by_role("button", name="Example: a recorded run").click()
    told(page, "A whole run: 320 of 320 steps over 1,000 rows were recorded.", "ViTForImageClassification")


def test_a_report_is_shown_and_its_rows_can_be_searched(page, made):
    upload(page, made[1] / "report.html")
    told(page, "The report report.html")
    frame = page.frame_locator(FRAME)
    assert frame.locator("h1").inner_text() == "A report of the test"
    assert "Nothing was retrained" in frame.locator(".verdict").inner_text()
    frame.get_by_label("Search text").fill("dropped")
    frame.get_by_role("status").get_by_text("16 of 32 rows match").wait_for()


def test_a_recorded_run_says_which_steps_can_be_scored(page, made):
    upload(page, made[1] / "trajectory.zip")
    told(page, "A whole run: 8 of 8 steps over 32 rows were recorded.", "Rows can be scored over the steps 4 to 8.")
    told(page, "ViTForImageClassification", "2: 32")


@pytest.mark.parametrize("name", ["selection", "half"])
def test_what_was_saved_shows_its_certificate(page, made, name):
    upload(page, made[1] / f"{name}.zip")
    told(page, "Kept 16 of 32 rows (50.0%), method influence.")
    assert "better than" in page.locator(".opened h2").inner_text()
    assert "50%" in page.frame_locator(FRAME).locator("main").inner_text()


def test_a_dataset_on_the_hub_says_what_retraining_showed_and_no_rows_are_fetched(page, made):
    hub, _ = made
    hub.requests.clear()
    ask(page, f"alice/half@{hub.repo('alice/half').at('main').sha}")
    verdict = "Retrained on these rows, the model was better than as many random rows: +7.0 points of accuracy"
    told(page, verdict, "Kept 16 of 32 rows", "hf-prune replay alice/half")
    page.locator("summary").get_by_text("Figures").click()
    told(page, "alice/rows")
    frame = page.frame_locator(FRAME)
    assert frame.locator("h1").inner_text() == "Pruning report: alice/half"
    assert verdict in frame.locator(".verdict").inner_text()
    parquet = {request.rpartition("/")[2] for request in hub.requests if request.endswith(".parquet")}
    assert parquet == {"kept_ids.parquet"}
    ask(page, "alice/half:unmeasured/")
    told(page, "Predicted to be")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("alice/hidden", "There is no public dataset alice/hidden on the Hub."),  # whose token the Space has
        ("alice/none", "There is no public dataset alice/none on the Hub."),
        ("alice/half@old", "The dataset alice/half has no revision old."),
        ("alice/rows", "alice/rows was not published by hf_prune: it has no hf_prune/provenance.json."),
        ("../examples", "'../examples' is not the name of a dataset: write it as owner/name"),
    ],
)
def test_what_is_not_on_the_hub_is_said_in_a_sentence(page, name, sentence):
    ask(page, name)
    assert sentence in page.get_by_role("alert").inner_text()


REFRESH = '<meta http-equiv="refresh" content="0; url={url}/stolen-refresh"><h1>A report</h1>'
EVERYTHING = """<!DOCTYPE html><html><head><link rel="stylesheet" href="{url}/stolen-style"></head><body>
<h1>A report</h1><img src="{url}/stolen-img"><iframe src="{url}/stolen-frame"></iframe>
<form action="{url}/stolen-form"><button>send</button></form><a href="{url}/stolen-top" target="_top">top</a>
<a href="{url}/stolen-new" target="_blank">new</a><a href="{url}/stolen-link">here</a>
<script>
document.body.append("script ran");
try {{ parent.document.title = "stolen" }} catch (error) {{ }}
parent.postMessage("stolen", "*");
fetch("{url}/stolen-fetch");
location = "{url}/stolen-script";
</script></body></html>"""


@pytest.mark.parametrize("content", [REFRESH, EVERYTHING], ids=["refresh", "everything"])
def test_a_report_of_a_stranger_runs_nothing_and_reaches_nothing(page, made, tmp_path, content):
    hub, _ = made
    (tmp_path / "evil.html").write_text(content.format(url=hub.url))
    page.evaluate("window.heard = []; addEventListener('message', (event) => window.heard.push(event.data))")
    title = page.title()
    upload(page, tmp_path / "evil.html")
    told(page, "The report evil.html")
    frame = page.frame_locator(FRAME)
    page.wait_for_timeout(500)  # a refresh or a script would have acted by now
    if content is EVERYTHING:
        frame.get_by_role("button", name="send").click(no_wait_after=True)
        for name in ("top", "new", "here"):
            assert "script ran" not in frame.locator("body").inner_text()
            frame.get_by_role("link", name=name).click(no_wait_after=True)
            page.wait_for_timeout(200)
    assert not [request for request in hub.requests if "stolen" in request]
    assert "stolen" not in page.evaluate("JSON.stringify(window.heard)")
    assert page.title() == title
    assert page.url.startswith(hub.space)
    assert len(page.context.pages) == 1


def test_a_report_of_a_stranger_has_an_origin_of_its_own(page, made, tmp_path):
    """What hf_prune's own script could reach, if it were another one."""
    upload(page, made[1] / "report.html")
    told(page, "The report report.html")
    page.frame_locator(FRAME).get_by_role("heading", name="A report of the test").wait_for()
    inside = page.locator(FRAME).element_handle().content_frame()
    assert inside.evaluate("self.origin") == "null"
    reach = "name => {{ try {{ return String({0}) }} catch (error) {{ return error.name }} }}"
    assert inside.evaluate(reach.format("parent.document.title")) == "SecurityError"
    assert inside.evaluate(reach.format("document.cookie")) == "SecurityError"
    assert inside.evaluate(reach.format("localStorage")) == "SecurityError"


def test_names_that_hold_html_are_shown_as_text(page, made, tmp_path):
    label = EVIL + "${window.ran = true}{{window.ran}}"
    rows = scored().cast_column("label", ClassLabel(names=["negative", label]))
    select(rows, 0.5).save(tmp_path / "selection")
    upload(page, zipped(tmp_path / "evil.zip", tmp_path / "selection"))
    told(page, "Kept 30 of 60 rows")
    assert label in page.locator(".opened pre").inner_text()
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None


def test_a_zip_file_that_leads_out_of_its_directory_is_refused(page, made, tmp_path):
    upload(page, zipped(tmp_path / "evil.zip", made[1] / "trajectory", also={"../../escaped.json": b"{}"}))
    assert "'../../escaped.json', which is no plain file" in page.get_by_role("alert").inner_text()
    assert not list(made[1].rglob("escaped.json"))


def test_a_damaged_run_is_refused_without_a_path_of_the_server(page, tmp_path):
    upload(page, zipped(tmp_path / "bad.zip", None, also={"manifest.json": b'{"schema_version": 1}'}))
    said = page.get_by_role("alert").inner_text()
    assert "manifest lacks the field" in said.replace("Manifest", "manifest")
    assert "/tmp" not in said


def test_a_report_that_is_too_large_is_refused_before_it_is_read(page, tmp_path):
    (tmp_path / "large.html").write_bytes(b"<p>large</p>" + bytes(16 * 2**20))
    upload(page, tmp_path / "large.html")
    said = page.get_by_role("alert").inner_text()
    assert said.startswith("large.html has 16,777,228 bytes, and at most 16,777,216 are read")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_panel_that_keeps_a_reader_out(page, size, scheme):
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    page.get_by_role("button", name="Example: a recorded run").click()
    told(page, "ViTForImageClassification")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
