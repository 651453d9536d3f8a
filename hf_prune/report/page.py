"""`write_report`: the page, from its template."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from hf_prune import __version__
from hf_prune._core.io import write_bytes
from hf_prune._core.units import Unit
from hf_prune._core.words import plain
from hf_prune.report import draw, media, plots, theme
from hf_prune.report.data import Curve, ReportData
from hf_prune.report.preview import draw_preview, preview_of
from hf_prune.report.svg import inline_svg
from hf_prune.verification.verdict import headline, sentence

SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What a page may do: its one script runs, which nothing that comes from data can match, and nothing is loaded."""
TINY = 64
"""Pixels of a side up to which an image is enlarged without smoothing."""


def write_report(path: str | os.PathLike[str], data: ReportData) -> Path:
    """
    Writes a report as one HTML file that needs no network; with an `address`, also the picture of its previews.

    Args:
        path (`str` or `os.PathLike`): The file; its directory is made if it does not exist.
        data (`ReportData`): What to show.

    Returns:
        `Path`: The file.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, render_report(data).encode())
    if data.address is not None:
        write_bytes(file.with_suffix(".png"), draw_preview(data.title, verdict_of(data), data.verified))
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
        verdict=verdict_of(data),
        measured=[sentence(found) for _, found in sorted(data.verified.items())],
        results=_results(data),
        preview=None if data.address is None else preview_of(data.address),
        rows=_listed(data),
        figures=_figures(data),
        certificate=certificate,
        certificate_notes=notes,
        light=theme.LIGHT,
        dark=theme.DARK,
        script=Markup(SCRIPT),
        policy=POLICY,
        version=__version__,
    )


def verdict_of(data: ReportData) -> str | None:
    """The first line: what retraining showed, or that there was none."""
    if data.verified:
        return headline(data.verified)
    if data.observed is not None or data.rate is None:
        return data.observed
    return (
        f"Nothing was retrained on what is left, so what leaving out {data.rate:.0%} of the rows costs is not known: "
        "hf-prune verify measures it."
    )


def _results(data: ReportData) -> list[tuple[str, str, str, str, str]]:
    """The table of retrainings: share, and values of the pruned, the random, their difference and all rows."""
    lines = []
    for rate, found in sorted(data.verified.items()):
        unit, beside, random = Unit(found.metric), found.beside_random, found.random
        lines.append(
            (
                f"{rate:.0%}",
                unit.spread(found.pruned.metric.mean, found.pruned.metric.sd),
                "" if random is None else unit.spread(random.metric.mean, random.metric.sd),
                "" if beside is None else unit.difference(beside),
                unit.spread(found.full.metric.mean, found.full.metric.sd),
            )
        )
    return lines


def _listed(data: ReportData) -> Markup:
    """The rows to search as JSON that no text of a row can end: "<" is written as an escape."""
    labels = sorted({row.label for row in data.listed if row.label is not None})
    places = {label: place for place, label in enumerate(labels)}
    lines = [
        [row.row, places.get(row.label or "", -1), int(row.kept), f"{row.norm:.3g}", row.reason, row.text]
        for row in data.listed
    ]
    held = json.dumps({"labels": labels, "rows": lines}, ensure_ascii=False, separators=(",", ":"))
    return Markup(held.replace("<", "\\u003c"))


def _figures(data: ReportData) -> list[tuple[str, Markup, str]]:
    """Title, picture and caption of each picture that there are data for."""
    rate = "" if data.rate is None else f", {data.rate:.0%} pruned"
    figures = []

    def add(title: str, name: str, description: str, caption: str, paint: Callable[[Axes], None]) -> None:
        # made here, with its texts escaped by matplotlib
        picture = Markup(inline_svg(plots.picture(paint), name, description))
        figures.append((title, picture, caption))

    kept = data.kept_norms
    if data.verified:
        curve = Curve.of(data.verified)
        metric = curve.metric.capitalize()
        text = "Trained again on what is left. Bars and band: 95% intervals over seeds."
        about = f"{metric} against pruned share"
        add(f"{metric} against the pruned share", "accuracy", about, text, lambda ax: draw.draw_curve(ax, curve))
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


def _data_url(content: bytes) -> Markup:
    # base64 holds nothing that needs escaping, and megabytes of it are slow to look through
    mime = media.sound_type(content) or "image/png"
    return Markup(f"data:{mime};base64,{base64.b64encode(content).decode()}")


def _is_tiny(png: bytes) -> bool:
    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk, which comes first
    return bool(max(width, height) <= TINY)


def _split(certificate: str | None) -> tuple[list[str], list[str]]:
    """The certificate's sentences, and its notes."""
    lines = plain(certificate or "").splitlines()
    return [line for line in lines if not line.startswith("- ")], [line[2:] for line in lines if line.startswith("- ")]
