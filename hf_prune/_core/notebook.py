"""What notebooks show of a trajectory, a certificate and a selection: small tables, with everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape

from hf_prune._core.doubts import DOUBTED
from hf_prune._core.words import plain

SHOWN = 5
"""Rows on each side of a query."""
LONGEST = 300
"""Characters of a text."""


def trajectory_html(trajectory: Any) -> str:
    """A recorded run as an HTML table."""
    manifest = trajectory.manifest
    steps = trajectory.snapshot_steps
    window = f"steps {steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else "not begun"
    state = "complete" if manifest.complete else manifest.stopped or "not complete"
    rows = [
        ("steps", f"{len(trajectory):,} of {manifest.total_steps:,}, {state}"),
        ("window", f"{window}, {len(steps)} snapshots"),
        ("training rows", f"{trajectory.n_rows:,}"),
        ("model", str(manifest.model.get("class") or "unknown")),
        ("parameters", f"{manifest.n_parameters:,}"),
        ("optimizer", str(manifest.optimizer["name"])),
        ("processes", str(manifest.world_size)),
        ("run", manifest.run_id),
    ]
    return str(_table("Trajectory", ("", ""), rows))


def certificate_html(certificate: Any) -> str:
    """A certificate as an HTML table, with random subsets for comparison, and its notes."""
    return str(_verdict(certificate) + _figures_table(certificate) + _notes(certificate.notes))


def selection_html(selection: Any) -> str:
    """A selection as an HTML table: its arguments and its certificate."""
    asked = [(name, str(value)) for name, value in selection.config.to_dict().items() if value is not None]
    asked += [(f"{name}, as chosen", str(value)) for name, value in selection.resolved.items() if name != "kept"]
    certificate = selection.certificate
    arguments_table = _folded("Arguments", _table("", ("", ""), asked))
    return str(_verdict(certificate) + _figures_table(certificate) + arguments_table + _notes(certificate.notes))


def attribution_html(attribution: Any) -> str:
    """Queries as HTML tables of the rows at their top and bottom."""
    parts = []
    for number, query in enumerate(attribution.queries):
        said = query.completion if query.prompt is None else f"{query.prompt} → {query.completion}"
        rows = [*attribution.top(number, min(SHOWN, attribution.config.k))]
        against = [*attribution.bottom(number, min(SHOWN, attribution.config.k))]
        cells = [("for", row) for row in rows] + [("against", row) for row in against]
        lines = [(side, f"{row.influence:+.3g}", str(row.row), _content(row.content)) for side, row in cells]
        parts.append(_table(_shortened(said), ("", "influence", "row", "text"), lines))
    notes = [f"{DOUBTED}: {doubt}" for doubt in attribution.doubts]
    return str(Markup("").join([*parts, _notes(notes)]))


def _content(content: Any) -> str:
    return _shortened(" · ".join(filter(None, (content.text, content.label))))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _figures_table(certificate: Any) -> Markup:
    share = certificate.kept / certificate.n
    title = f"Kept {certificate.kept:,} of {certificate.n:,} rows ({share:.1%}), method {certificate.method}"
    return _table(title, ("", "this subset", "random subsets"), _figures(certificate))


def _figures(certificate: Any) -> Iterable[tuple[str, str, str]]:
    shift, loss = certificate.random_shift, certificate.random_eval_loss_change
    yield "predicted shift", f"{certificate.predicted_shift:.4g}", str(shift)
    if certificate.audit_residual is not None:
        what = f"shift on {certificate.audit} directions that no solver saw"
        yield what, f"{certificate.audit_residual:.4g}", str(certificate.random_audit_residual)
    if certificate.predicted_eval_loss_change is not None:
        yield "predicted change of held-out loss", f"{certificate.predicted_eval_loss_change:+.4g}", str(loss)
    yield "unit of the shift", certificate.units, ""


def _verdict(certificate: Any) -> Markup:
    return Markup("<p>{}</p>").format(plain(certificate.verdict))


def _notes(notes: Sequence[str]) -> Markup:
    if not notes:
        return Markup("")
    items = Markup("").join(Markup("<li>{}</li>").format(plain(note)) for note in notes)
    return _folded("Before you trust it", Markup("<ul>{}</ul>").format(items))


def _folded(title: str, content: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>{}</details>").format(title, content)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table that takes its colours from the notebook's theme; `Markup.format` escapes what is put in."""
    caption = Markup("<caption style='text-align: left'><b>{}</b></caption>").format(title) if title else Markup("")
    names = Markup("").join(Markup("<th scope='col'>{}</th>").format(name) for name in head)
    first = Markup("<thead><tr>{}</tr></thead>").format(names) if any(head) else Markup("")
    body = Markup("").join(Markup("<tr>{}</tr>").format(_cells(row)) for row in rows)
    return Markup("<table>{}{}<tbody>{}</tbody></table>").format(caption, first, body)


def _cells(row: Sequence[str]) -> Markup:
    name, *values = row
    head = Markup("<th scope='row' style='text-align: left'>{}</th>").format(name)
    cells = (Markup("<td style='text-align: left'>{}</td>").format(escape(value)) for value in values)
    return head + Markup("").join(cells)
