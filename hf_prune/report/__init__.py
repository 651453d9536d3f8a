"""The report: one page that shows what was pruned, what was predicted and what happened. `write_report` makes it."""

from hf_prune.report.build import gaps, how_it_was_made, selection_parts
from hf_prune.report.data import Curve, Example, Gap, ReportData
from hf_prune.report.page import render_report, write_report
from hf_prune.report.plots import plot_classes, plot_curve, plot_gap, plot_influence

__all__ = [
    "Curve",
    "Example",
    "Gap",
    "ReportData",
    "gaps",
    "how_it_was_made",
    "plot_classes",
    "plot_curve",
    "plot_gap",
    "plot_influence",
    "render_report",
    "selection_parts",
    "write_report",
]
