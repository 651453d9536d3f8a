"""The report: one page that shows what was pruned, what was predicted and what happened. `write_report` makes it."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("Reports and plots need matplotlib: pip install 'hf-prune[report]'.") from error

from hf_prune.report.attributed import attributed_queries
from hf_prune.report.build import gaps, how_it_was_made, observed, selection_parts
from hf_prune.report.data import AttributedQuery, Curve, Example, Gap, InfluentialRow, ReportData
from hf_prune.report.page import render_report, write_report
from hf_prune.report.plots import plot_classes, plot_curve, plot_gap, plot_influence

__all__ = [
    "AttributedQuery",
    "Curve",
    "Example",
    "Gap",
    "InfluentialRow",
    "ReportData",
    "attributed_queries",
    "gaps",
    "how_it_was_made",
    "observed",
    "plot_classes",
    "plot_curve",
    "plot_gap",
    "plot_influence",
    "render_report",
    "selection_parts",
    "write_report",
]
