"""`write_report`: the page, from its template."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from hf_prune import __version__
from hf_prune._core.io import write_bytes
from hf_prune.report import draw, media, plots, theme
from hf_prune.report.data import ReportData
from hf_prune.report.svg import inline_svg

SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
TINY = 64
"""Pixels of a side up to which an image is enlarged without smoothing."""


def write_report(path: str | os.PathLike[str], data: ReportData) -> Path:
    """
    Writes a report as one HTML file that needs no network.

    Args:
        path (`str` or `os.PathLike`): The file; its directory is made if it does not exist.
        data (`ReportData`): What to show.

    Returns:
        `Path`: The file.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, render_report(data).encode())
    return file


def render_report(data: ReportData) -> str:
    """
    Renders a report. What comes from data is escaped: a row that holds HTML or a script is shown, never run.

    Args:
        data (`ReportData`): What to show.

    Returns:
        `str`: The page.
    """
    environment = Environment(
        loader=PackageLoader("hf_prune.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_url": _data_url, "tiny": _is_tiny}
    template = environment.get_template("template.html.j2")
    certificate, notes = _split(data.certificate)
    return template.render(
        data=data,
        figures=_figures(data),
        certificate=certificate,
        certificate_notes=notes,
        labels=_labels(data),
        light=theme.LIGHT,
        dark=theme.DARK,
        script=Markup(SCRIPT),
        script_digest=_digest(SCRIPT),
        version=__version__,
    )


def _figures(data: ReportData) -> list[tuple[str, Markup, str]]:
    """Title, picture and caption of each picture that there are data for."""
    rate = "" if data.rate is None else f" at rate {data.rate:g}"
    figures = []

    def add(title: str, name: str, description: str, caption: str, paint: Callable[[Axes], None]) -> None:
        # made here, with its texts escaped by matplotlib
        picture = Markup(inline_svg(plots.picture(paint), name, description))
        figures.append((title, picture, caption))

    curve, kept = data.curve, data.kept_norms
    if curve is not None:
        metric = curve.metric.capitalize()
        text = "Trained again on what is left. Bars and band: 95 % intervals over seeds."
        about = f"{metric} against pruned share"
        add(f"{metric} against rate", "accuracy", about, text, lambda ax: draw.draw_curve(ax, curve))
    if data.gaps:
        text = "Change of the held-out loss against the model of all rows. On the dotted line the prediction holds."
        if any(gap.budget == "epochs" for gap in data.gaps):
            text += (
                " It is for retraining with as many steps; here smaller sets had as many epochs, thus fewer steps, "
                "which moves the points up where training was not finished."
            )
        about = "Observed against predicted change of loss"
        add("Predicted and observed", "gap", about, text, lambda ax: draw.draw_gap(ax, data.gaps))
    if kept is not None and len(kept):
        text = "How far the model's outputs move without a row: rows at the left are redundant, at the right hard."
        about = "Histogram of the influence norm"
        title = f"Influence of rows{rate}"
        add(title, "norms", about, text, lambda ax: draw.draw_influence(ax, kept, data.dropped_norms))
    if data.classes:
        column = f" ({data.class_column})" if data.class_column else ""
        text = f"Share of each class{column} among all rows and among the kept ones."
        about = "Share of each class before and after"
        add(f"Classes{rate}", "classes", about, text, lambda ax: draw.draw_classes(ax, data.classes))
    return figures


def _labels(data: ReportData) -> list[str]:
    """The classes of the shown rows, in order."""
    return sorted({row.label for _, _, rows in data.examples for row in rows if row.label is not None})


def _digest(script: str) -> str:
    """The one script that the page's policy lets run: nothing that comes from data can match it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _data_url(content: bytes) -> Markup:
    # base64 holds nothing that needs escaping, and megabytes of it are slow to look through
    mime = media.sound_type(content) or "image/png"
    return Markup(f"data:{mime};base64,{base64.b64encode(content).decode()}")


def _is_tiny(png: bytes) -> bool:
    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk, which comes first
    return bool(max(width, height) <= TINY)


def _split(certificate: str | None) -> tuple[list[str], list[str]]:
    """The certificate's sentences, and its notes."""
    lines = (certificate or "").replace("`", "").splitlines()  # names stand between backticks, for the terminal
    return [line for line in lines if not line.startswith("- ")], [line[2:] for line in lines if line.startswith("- ")]
