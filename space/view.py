"""The panel, as HTML. What comes from others is escaped; a report stands in a frame that cannot reach the app."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr
from markupsafe import Markup
from opening import Opened

from hf_prune._core.reading import one_line
from hf_prune._core.words import plain
from hf_prune.report.page import POLICY

HEAD = '<meta http-equiv="Content-Security-Policy" content="frame-src \'none\'">'
"""A report is part of the panel (srcdoc): no frame has an address, and none may go to one."""
THEME = gr.themes.Soft(
    primary_hue="indigo",
    font=["system-ui", "sans-serif"],  # nothing is loaded from elsewhere
    font_mono=["ui-monospace", "monospace"],
).set(  # what can be read by everybody is darker than gradio's own
    body_text_color_subdued="*neutral_600",
    block_title_text_color="*primary_700",
    block_label_text_color="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_700",
    button_secondary_background_fill_hover_dark="*neutral_700",
    link_text_color_dark="*secondary_300",
    link_text_color_visited_dark="*secondary_300",
)
CSS = """
.opened h2 {font-size: 1.35rem; font-weight: 700; line-height: 1.35; margin: .2rem 0 .3rem; text-wrap: balance}
.opened > p {margin: 0 0 .8rem}
.opened .refused {border-left: 4px solid var(--error-border-color); font-weight: 600; padding-left: .7rem}
.opened details {border: 1px solid var(--border-color-primary); border-radius: 8px; margin: 0 0 .8rem;
  padding: .5rem .8rem}
.opened summary {cursor: pointer; font-weight: 600}
.opened table {border-collapse: collapse; margin-top: .5rem; width: 100%}
.opened tr {border-top: 1px solid var(--border-color-primary)}
.opened th, .opened td {padding: .3rem .5rem; text-align: left; vertical-align: top; white-space: pre-line;
  overflow-wrap: anywhere}
.opened th {font-weight: 600; width: 13rem}
.opened pre {font-family: inherit; margin: .4rem 0 0; white-space: pre-wrap}
.opened iframe {border: 1px solid var(--border-color-primary); border-radius: 8px; height: 80vh; width: 100%}
@media (max-width: 40rem) {.opened th {width: 8rem}}
"""


def shown(opened: Opened) -> str:
    """What was opened."""
    head = Markup("<h2>{}</h2><p>{}</p>").format(opened.verdict, opened.remark)
    parts = []
    if opened.certificate is not None:
        predicted = Markup("<pre>{}</pre>").format(plain(opened.certificate))
        parts.append(_folded("What was predicted when the rows were chosen", predicted, unfolded=True))
    if opened.figures:
        parts.append(_folded("Figures", _table(opened.figures), unfolded=opened.page is None))
    if opened.page is not None:
        parts.append(_frame(opened.page))
    return _panel(head + Markup("").join(parts))


def refused(error: Exception) -> str:
    """Why something was not opened."""
    return _panel(Markup('<p class="refused" role="alert">{}</p>').format(one_line(error)))


def _panel(content: Markup) -> str:
    return str(Markup('<section class="opened" aria-label="What was opened">{}</section>').format(content))


def _table(figures: Sequence[tuple[str, str]]) -> Markup:
    line = Markup('<tr><th scope="row">{}</th><td>{}</td></tr>')
    return Markup("<table>{}</table>").format(Markup("").join(line.format(*figure) for figure in figures))


def _folded(title: str, content: Markup, *, unfolded: bool) -> Markup:
    state = Markup(" open") if unfolded else ""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(state, title, content)


def _frame(page: str) -> Markup:
    """The page in an origin of its own, under the policy of hf_prune's own pages whatever it says itself."""
    policy = Markup('<!DOCTYPE html><html><head><meta http-equiv="Content-Security-Policy" content="{}">')
    frame = Markup('<iframe title="Report" sandbox="allow-scripts" referrerpolicy="no-referrer" srcdoc="{}"></iframe>')
    return frame.format(str(policy.format(POLICY)) + page)
