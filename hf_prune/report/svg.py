"""Figures as inline SVG that takes its colours and its font from the page, and refers to nothing outside it."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

from hf_prune.report import draw

_VARIABLES = {
    draw.INK: "var(--ink)",
    draw.PRUNED: "var(--pruned)",
    draw.RANDOM: "var(--random)",
    draw.FULL: "var(--muted)",
    draw.GRID: "var(--line)",
}


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """
    Turns a figure into SVG to be put into an HTML page.

    Args:
        figure (`Figure`): The figure.
        name (`str`): Prefix of the ids, which have to be unique in the page.
        description (`str`): What the picture shows, for those who do not see it.

    Returns:
        `str`: One `<svg>` element.
    """
    buffer = io.StringIO()
    with draw.style(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1inherit", text)
    text = re.sub(r'font-family: [^;"]*', "font-family: inherit", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    title = f"<title>{_escape(description)}</title>"
    return re.sub(r"<svg ([^>]*)>", lambda tag: f'<svg role="img" {_scaled(tag[1])}>{title}', text, count=1).strip()


def _scaled(attributes: str) -> str:
    """The picture is as wide as its place; its height follows from the view box."""
    return re.sub(r'\b(width|height)="[^"]*"\s*', "", attributes)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
