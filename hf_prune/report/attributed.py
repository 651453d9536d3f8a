"""Queries and the rows behind them, as a page shows them."""

from __future__ import annotations

from hf_prune.attribution.result import AttributedRow, Attribution
from hf_prune.report import media
from hf_prune.report.data import AttributedQuery, InfluentialRow

MOST = 50
"""Queries in a page."""
MARKED = 0.5
"""Tokens are marked whose part is at least this share of the row's largest."""


def attributed_queries(attribution: Attribution) -> list[AttributedQuery]:
    """
    The parts of [`ReportData`] that come from an attribution, of its first 50 queries.

    Args:
        attribution (`Attribution`): What [`attribute`] found.
    """
    return [
        AttributedQuery(
            prompt=media.shorten(query.prompt),
            completion=media.shorten(query.completion) or "",
            loss=query.loss,
            top=[_row(row) for row in attribution.top(number)],
            bottom=[_row(row) for row in attribution.bottom(number)],
        )
        for number, query in enumerate(attribution.queries[:MOST])
    ]


def _row(row: AttributedRow) -> InfluentialRow:
    parts = row.parts
    tokens: list[tuple[str, bool]] = []
    if parts is not None and len(parts):
        most = float(abs(parts).max())
        tokens = [
            (token, most > 0 and abs(float(part)) >= MARKED * most)
            for token, part in zip(row.content.tokens, parts, strict=True)
        ]
    return InfluentialRow(row.row, row.influence, media.shorten(row.content.text), row.content.label, tokens)
