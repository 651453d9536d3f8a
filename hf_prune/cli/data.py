"""Commands on datasets: `score`, `attribute`, `prune` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune._core.config import AttributionConfig, ScoringConfig, SelectionConfig
from hf_prune.cli.common import JsonFlag, clean_stdout, print_json, verification_of
from hf_prune.cli.options import options_of, parsed
from hf_prune.cli.places import (
    MODEL,
    ROWS,
    TRAJECTORY,
    check_function,
    function_of,
    load_model,
    load_pruned,
    load_rows,
    load_tokenizer,
    open_record,
    refuse_existing,
    require_model,
    require_rows,
    require_trajectory,
)


@options_of(ScoringConfig, "version", "eval_digest")
def score(
    dataset: Annotated[str, typer.Argument(help=f"Training rows as the Trainer got them: {ROWS}.")],
    trajectory: Annotated[Path, typer.Argument(help=TRAJECTORY)],
    out: Annotated[Path, typer.Argument(help="Directory for the scored dataset; must be new.")],
    model: Annotated[str, typer.Option(help=f"The trained model: {MODEL}.")],
    eval_dataset: Annotated[str | None, typer.Option(help=f"Held-out rows: {ROWS}.")] = None,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Add the columns of other methods too: el2n, grand, forgetting, aum, loss, confidence, variability "
            "(of a run recorded with row_statistics=True) and, with --eval-dataset, less and rds.",
        ),
    ] = False,
    last_layer: Annotated[
        bool, typer.Option("--last-layer", help="With --scores: also what --method iclr2023 reads.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in one forward pass.")] = None,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes for the pass over the rows.")] = None,
    json: JsonFlag = False,
    **options: Any,
) -> None:
    """Add the influence columns to a dataset.

    For models of transformers and rows that need no collator of their own; for others call add_influence in Python.

    Example: hf-prune score run/train run/trajectory run/scored --model run/model --eval-dataset run/dev
    """
    if last_layer and not scores:
        raise ValueError("--last-layer goes with --scores: pass both.")
    asked = parsed(ScoringConfig, options)
    refuse_existing(out)
    require_rows(dataset, eval_dataset)
    require_trajectory(trajectory)
    require_model(model)
    with clean_stdout():
        from hf_prune._core.scoring import require_scoring
        from hf_prune.influence import add_influence
        from hf_prune.scores import add_scores
        from hf_prune.trajectory import Trajectory

        rows = load_rows(dataset)
        record = Trajectory.open(trajectory)
        run: dict[str, Any] = {
            "model": load_model(model, record.manifest.model),
            "eval_dataset": None if eval_dataset is None else load_rows(eval_dataset),
            "batch_size": batch_size,
        }
        if scores:
            rows = add_scores(rows, record, last_layer=last_layer, until=asked["until"], **run)
        scored = add_influence(rows, record, num_proc=num_proc, **run, **asked)
        scored.save_to_disk(str(out))
    if json:
        print_json({"rows": len(scored), "directory": str(out), "scoring": require_scoring(scored).config.to_dict()})
    else:
        typer.echo(f"Scored {len(scored):,} rows into {out}.")


@options_of(AttributionConfig, "version")
def attribute(
    trajectory: Annotated[Path, typer.Argument(help=TRAJECTORY)],
    dataset: Annotated[str, typer.Option(help=f"Training rows as the Trainer got them: {ROWS}.")],
    model: Annotated[str, typer.Option(help=f"The trained model or adapter: {MODEL}.")],
    query: Annotated[list[str] | None, typer.Option(help="What the model said; may be repeated.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What it was given, the same for each --query.")] = None,
    queries: Annotated[
        str | None,
        typer.Option(help=f"A file of JSON lines (texts, prompts with completions, chats), or rows: {ROWS}."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Directory or Hub id. [default: the model's]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in one forward pass.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write all of it to this safetensors file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page that needs no network.")] = None,
    json: JsonFlag = False,
    **options: Any,
) -> None:
    """Say which training rows made the model say this.

    For models of transformers, with adapters of peft, and rows that need no collator of their own; for others call
    attribute in Python. A positive influence means that the row helped.
    """
    if (queries is None) == (not query):
        raise ValueError("There is nothing to ask, or too much: pass either --query or --queries.")
    if prompt is not None and not query:
        raise ValueError("--prompt goes with --query: put the prompts of --queries into its file.")
    asked = parsed(AttributionConfig, options)
    require_rows(dataset)
    require_trajectory(trajectory)
    require_model(model)
    with clean_stdout():
        from rich.console import Console

        from hf_prune.attribution.api import attribute as attribute_rows
        from hf_prune.cli.show import attribution_table
        from hf_prune.trajectory import Trajectory

        if report is not None:  # what is missing for it is said before the work
            from hf_prune.report import ReportData, attributed_queries, write_report

        record = Trajectory.open(trajectory)
        said: Any = [text if prompt is None else {"prompt": prompt, "completion": text} for text in query or ()]
        found = attribute_rows(
            record,
            said if queries is None else _queries(queries),
            dataset=load_rows(dataset),
            model=load_model(model, record.manifest.model),
            processing_class=load_tokenizer(tokenizer or model, required=tokenizer is not None),
            batch_size=batch_size,
            **asked,
        )
        if output is not None:
            found.save(output)
        if report is not None:
            page = ReportData(title="Which rows made it say that?", attributed=attributed_queries(found))
            write_report(report, page)
    if json:
        print_json({"queries": len(found), "rows": found.influence.shape[1], "found": found.to_dataset().to_list()})
        return
    for number in range(len(found)):
        Console().print(attribution_table(found, number))


def _queries(name: str) -> Any:
    """Rows, or a list of what stands in the lines of a file."""
    from hf_prune._core.reading import Reader

    file = Path(name)
    if not file.is_file() and ("/" in name or file.is_dir()):
        return load_rows(name)
    reader = Reader(ValueError, 'write each query as a line such as {"prompt": "...", "completion": "..."}')
    content = reader.content(file)
    if content is None:
        raise FileNotFoundError(f"There is no {file}: pass a file of JSON lines, or a directory of save_to_disk.")
    lines = enumerate(content.splitlines(), 1)
    return [reader.value(line, f"Line {number} of {file}") for number, line in lines if line.strip()]


@options_of(SelectionConfig)
def prune(
    dataset: Annotated[str, typer.Argument(help=f"A scored dataset: {ROWS}.")],
    out: Annotated[Path, typer.Argument(help="Directory for the pruned dataset; must be new.")],
    probe: Annotated[
        str | None,
        typer.Option(help="module:function that makes a Trainer: finds out by retraining which rows to prefer."),
    ] = None,
    probe_eval: Annotated[
        str | None, typer.Option(help=f"Rows the probe measures on, not those of verify: {ROWS}.")
    ] = None,
    probe_metric: Annotated[str, typer.Option(help="As verify's --metric.")] = "accuracy",
    probe_cost: Annotated[float, typer.Option(help="What it may cost, in trainings on all rows.")] = 8.0,
    probe_steps: Annotated[
        int | None, typer.Option(help="Compare for equal steps, this many; without it for equal epochs.")
    ] = None,
    raw: Annotated[
        str | None,
        typer.Option(help=f"The rows before they were prepared for the Trainer, to save instead: {ROWS}."),
    ] = None,
    unseen: Annotated[str | None, typer.Option(help="keep or drop raw rows that were not scored.")] = None,
    include_scores: Annotated[bool, typer.Option("--include-scores", help="Save the influence columns.")] = False,
    json: JsonFlag = False,
    **options: Any,
) -> None:
    """Keep the rows that the model needs, and save them with their provenance.

    Example: hf-prune prune run/scored run/half --keep 0.5
    """
    if raw is None and unseen is not None:
        raise ValueError("--unseen is about raw rows: pass --raw too.")
    if (probe is None) != (probe_eval is None):
        raise ValueError("A probe needs a Trainer and rows to measure on: pass both --probe and --probe-eval.")
    asked = parsed(SelectionConfig, options)
    refuse_existing(out)
    require_rows(dataset, probe_eval, raw)
    if probe is not None:
        check_function("--probe", probe)
    with clean_stdout():
        from hf_prune.selection import prune as prune_rows

        probed = None
        if probe is not None and probe_eval is not None:
            probed = _probe(probe, probe_eval, probe_metric, probe_cost, probe_steps, out)
        pruned = prune_rows(load_rows(dataset), probe=probed, **asked)
        if raw is not None:
            pruned = pruned.selection.apply(load_rows(raw), unseen=unseen)
        pruned.save_to_disk(str(out), include_scores=include_scores)
    certificate = pruned.selection.certificate
    if json:
        print_json({"rows": len(pruned), "directory": str(out), "certificate": certificate.to_dict()})
    else:
        typer.echo(certificate.explain())
        typer.echo(f"Saved to {out}.")


def _probe(name: str, rows: str, metric: str, cost: float, steps: int | None, out: Path) -> Any:
    """The probe that was asked for; its results are kept next to the output, so that a stopped one continues."""
    from hf_prune.verification.probe import Probe

    return Probe(
        function_of("--probe", name),
        load_rows(rows),
        metric=metric,
        budget="epochs" if steps is None else "steps",
        steps=steps,
        cost=cost,
        directory=out.with_name(f"{out.name}-probe"),
    )


def report(
    pruned: Annotated[str, typer.Argument(help=f"A pruned dataset: {ROWS}.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    source: Annotated[
        str | None, typer.Option(help=f"The scored dataset it came from, to show the dropped rows too: {ROWS}.")
    ] = None,
    verification: Annotated[
        Path | None, typer.Option(help="What hf-prune verify --out wrote.", exists=True, dir_okay=False)
    ] = None,
    attribution: Annotated[
        Path | None, typer.Option(help="What hf-prune attribute --output wrote.", exists=True, dir_okay=False)
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page. [default: the directory's name]")] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Where the page will be on the web, such as https://me.github.io/report.html: a picture for previews "
            "of links is written beside it."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a report on a pruned dataset as one HTML page that needs no network.

    Example: hf-prune report run/half --source run/scored --verification run/verification.json
    """
    require_rows(pruned, source)
    with clean_stdout():
        from hf_prune.attribution.result import Attribution
        from hf_prune.report import (
            ReportData,
            attributed_queries,
            gaps,
            how_it_was_made,
            observed,
            selection_parts,
            write_report,
        )

        kept, record = load_rows(pruned), open_record(pruned)
        if source is None:
            selection, rows = record.selection(), kept
        else:
            rows = load_rows(source)
            selection = load_pruned(pruned, rows).selection
        verified: dict[str, Any] = {}
        if verification is not None:
            found = verification_of(verification, selection)
            rate = round(1 - len(selection.keep_indices) / selection.n_rows, 4)
            verified = {"verified": {rate: found}, "gaps": gaps(rate, selection, found)}
        data = ReportData(
            title=title or f"Pruning report: {Path(pruned).resolve().name}",
            address=address,
            made=how_it_was_made(record.provenance),
            observed=observed(record.provenance),
            **selection_parts(selection, rows),
            attributed=() if attribution is None else attributed_queries(Attribution.load(attribution)),
            **verified,
        )
        write_report(out, data)
    if json:
        print_json({"report": str(out), "bytes": out.stat().st_size})
    else:
        typer.echo(f"Wrote {out}.")
