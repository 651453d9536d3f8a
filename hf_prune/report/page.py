"""`write_report`: the page, from its template."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import hf_prune
from hf_prune.report import plots
from hf_prune.report.data import Example, ReportData
from hf_prune.report.svg import inline_svg


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
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(render_report(data), encoding="utf-8")
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
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
        loader=PackageLoader("hf_prune.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["picture"] = _data_url
    template = environment.get_template("template.html.j2")
    certificate, notes = _split(data.certificate)
    return template.render(
        data=data, figures=_figures(data), certificate=certificate, certificate_notes=notes,
        version=hf_prune.__version__,
    )  # fmt: skip


def _figures(data: ReportData) -> list[tuple[str, Markup, str]]:
    """Title, picture and caption of each picture that there are data for."""
    rate = "" if data.rate is None else f" at rate {data.rate:g}"
    figures = []
    if data.curve is not None:
        metric = data.curve.metric.capitalize()
        text = "Trained again on what is left. Bars and band: 95 % intervals over seeds."
        ax = plots.plot_accuracy(data.curve)
        figures.append((f"{metric} against rate", _svg(ax, "accuracy", f"{metric} against pruned share"), text))
    if data.gaps:
        text = "Change of the held-out loss against the model of all rows. On the dotted line the prediction holds."
        ax = plots.plot_gap(data.gaps)
        figures.append(("Predicted and observed", _svg(ax, "gap", "Observed against predicted change of loss"), text))
    if data.kept_norms is not None and len(data.kept_norms):
        text = "How far the model's outputs move without a row: rows at the left are redundant, at the right hard."
        ax = plots.plot_norms(data.kept_norms, data.dropped_norms)
        figures.append((f"Influence of rows{rate}", _svg(ax, "norms", "Histogram of the influence norm"), text))
    if data.classes:
        column = f" ({data.class_column})" if data.class_column else ""
        text = f"Share of each class{column} among all rows and among the kept ones."
        ax = plots.plot_classes(data.classes)
        figures.append((f"Classes{rate}", _svg(ax, "classes", "Share of each class before and after"), text))
    return figures


def _svg(ax: plots.Axes, name: str, description: str) -> Markup:
    return Markup(inline_svg(ax, name, description))  # made here, with its texts escaped by matplotlib


def _data_url(example: Example) -> str:
    return "data:image/png;base64," + base64.b64encode(example.image or b"").decode()


def _split(certificate: str | None) -> tuple[list[str], list[str]]:
    """The certificate's sentences, and its notes."""
    lines = (certificate or "").splitlines()
    return [line for line in lines if not line.startswith("- ")], [line[2:] for line in lines if line.startswith("- ")]
