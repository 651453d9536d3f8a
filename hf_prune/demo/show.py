"""What the demo shows: a table for the terminal, and the report."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hf_prune._core.units import Unit
from hf_prune.demo.run import MAIN_RATE, DemoResult
from hf_prune.report import ReportData, gaps, how_it_was_made, selection_parts, write_report
from hf_prune.verification import MeanInterval


def table(result: DemoResult) -> Group:
    """The table of accuracies, and below it prediction, seconds and notes."""
    full = next(iter(result.test.values())).full
    grid = Table(title=f"{result.task.title}: accuracy on {result.task.sizes.test} test rows", title_justify="left")
    for name in ("rows pruned", "rows kept", "pruned", "random rows", "pruned - random"):
        grid.add_column(name, justify="right")
    grid.add_row("0 %", str(full.rows), _spread(full.metric), _spread(full.metric), "")
    for rate, verification in result.test.items():
        pruned, random = verification.pruned.metric, verification.random.metric if verification.random else None
        grid.add_row(
            f"{rate:.0%}",
            str(verification.pruned.rows),
            _spread(pruned),
            "" if random is None else _spread(random),
            "" if verification.beside_random is None else _difference(verification.beside_random),
        )
    seeds = (
        f"Mean ± standard deviation over {len(full.runs)} seeds, equal epochs; the last column with the 95 % interval "
        "over pairs of the same seed."
    )
    lines = (seeds, _gap_line(result), _seconds_line(result), *result.task.notes)
    return Group(grid, *(Text(line) for line in lines))


def report(result: DemoResult, path: Path) -> Path:
    """Writes the report."""
    return write_report(path, report_data(result))


def report_data(result: DemoResult) -> ReportData:
    """What the report shows of a demo."""
    selection = result.pruned[MAIN_RATE].selection
    main = result.test[MAIN_RATE]
    certificate = selection.certificate
    assert main.random is not None
    highlights = [
        (_percent(main.full.metric), "accuracy on all rows", f"{main.full.rows:,} rows"),
        (_percent(main.pruned.metric), f"accuracy, {MAIN_RATE:.0%} pruned", f"{main.pruned.rows:,} rows"),
        (_percent(main.random.metric), "accuracy, random rows", "as many, others for each seed"),
        (f"{result.seconds['score']:.1f} s", "to score", f"training took {result.seconds['train']:.1f} s"),
    ]
    if certificate.audit_ratio is not None:
        highlights.insert(
            3, (f"{certificate.audit_ratio:.2f}", "times random's predicted shift", "on directions no solver saw")
        )
    return ReportData(
        title=f"Pruning report: {result.task.title}",
        lead=f"Every row's influence on the trained model was estimated, rows were pruned at {len(result.test)} "
        "rates, and the model was retrained on what was left, and on as many random rows.",
        highlights=highlights,
        verified=result.test,
        gaps=gaps(MAIN_RATE, selection, result.dev),
        made=_made(result),
        notes=result.task.notes,
        **selection_parts(selection, result.scored),
    )


def _made(result: DemoResult) -> list[tuple[str, str]]:
    sizes, seconds = result.task.sizes, result.seconds
    names = ("train", "record_overhead", "score", "select", "total")
    return [
        ("data", f"{sizes.train} rows for training, {sizes.dev} held out (dev), {sizes.test} for the test"),
        ("retraining", f"{len(result.dev.full.runs)} seeds an arm, {sizes.epochs} epochs each"),
        ("seconds", ", ".join(f"{name.replace('_', ' ')} {seconds[name]:.1f}" for name in names)),
        *how_it_was_made(result.provenance),
    ]


def _gap_line(result: DemoResult) -> str:
    dev = result.dev
    predicted = "unknown" if dev.predicted_loss_change is None else f"{dev.predicted_loss_change:+.4f}"
    return (
        f"Change of the held-out loss at {MAIN_RATE:.0%} pruned ({result.task.sizes.dev} dev rows, equal steps): "
        f"predicted {predicted}, observed {dev.loss_change} (95 % interval)."
    )


def _seconds_line(result: DemoResult) -> str:
    s = result.seconds
    return (
        f"Seconds: train {s['train']:.1f} (recording {s['record_overhead']:+.1f}, one pair of runs), "
        f"score {s['score']:.1f}, select {s['select']:.2f}, everything {s['total']:.0f}."
    )


def _spread(estimate: MeanInterval) -> str:
    return Unit("accuracy").spread(estimate.mean, estimate.sd)


def _difference(gap: MeanInterval) -> str:
    if gap.interval is None:
        return f"{100 * gap.mean:+.1f}"
    return f"{100 * gap.mean:+.1f} [{100 * gap.interval[0]:+.1f}, {100 * gap.interval[1]:+.1f}]"


def _percent(estimate: MeanInterval) -> str:
    return Unit("accuracy").value(estimate.mean)
