"""Tables of the command line. What comes from data is shown as it is, never read as markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

LONGEST = 160
"""Characters of a row's text in a table."""


def attribution_table(attribution: Any, number: int) -> Table:
    """The rows at the top and at the bottom of one query."""
    query = attribution.queries[number]
    said = query.completion if query.prompt is None else f"{query.prompt} → {query.completion}"
    grid = Table(title=Text(f"{shortened(said)} (loss {query.loss:.3g})"), title_justify="left")
    for name, justify in (("", "left"), ("influence", "right"), ("row", "right"), ("text", "left")):
        grid.add_column(name, justify=justify)  # type: ignore[arg-type]
    for side, rows in (("for", attribution.top(number)), ("against", attribution.bottom(number))):
        for row in rows:
            grid.add_row(side, f"{row.influence:+.3g}", str(row.row), _words(row))
        grid.add_section()
    return grid


def spikes_table(spikes: Any, texts: dict[int, str]) -> Table:
    """
    The steps that stand out, with the micro-batches and rows behind them.

    Args:
        texts (`dict[int, str]`): Rows in words, by id.
    """
    grid = Table(title="Steps that stand out", title_justify="left")
    for name in ("step", "what", "value", "usual", "behind it"):
        grid.add_column(name)
    for spike in spikes.spikes:
        behind = [
            f"row {row.id}: loss {row.loss:.3g} ({row.deviation:+.1f} sd) {shortened(texts.get(row.id, ''))}".rstrip()
            for row in spike.rows
        ] or [_micro(batch) for batch in spike.batches]
        if spike.whole_step:
            behind.insert(0, "most rows of the step lose more: an earlier update moved the model")
        figures = f"{spike.value:.3g}", f"{spike.usual:.3g}"
        grid.add_row(str(spike.step), spike.signal.replace("_", " "), *figures, Text("\n".join(behind)))
        grid.add_section()
    return grid


def _micro(batch: Any) -> str:
    loss = "" if batch.loss is None else f", loss {batch.loss:.3g}"
    return shortened(f"process {batch.rank}{loss}: rows {', '.join(map(str, batch.ids))}")


def shortened(text: str) -> str:
    """A text in one line that is no longer than a table shows of it."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[:LONGEST] + " …"


def _words(row: Any) -> Text:
    content = row.content
    if row.parts is None:
        return Text(shortened(" · ".join(filter(None, (content.text, content.label)))))
    most = max(float(abs(row.parts).max()), 1e-30) if len(row.parts) else 1.0
    text = Text(shortened(content.text or "") + "\n")
    for token, part in zip(content.tokens, row.parts, strict=True):
        text.append(token, style="bold green" if part > most / 2 else "bold red" if part < -most / 2 else "")
        text.append(" ")
    return text


def figures(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values in words, as tables show them."""
    return [(name.replace("_", " "), _readable(name, value)) for name, value in values.items()]


def _readable(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_readable(name, entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool) and "bytes" in name:
        return _size(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _size(count: int) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"
