"""Commands on datasets: `score`, `attribute`, `prune` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune._core.config import AttributionConfig, ScoringConfig, SelectionConfig
from hf_prune.cli.common import (
    JsonFlag,
    clean_stdout,
    function_of,
    load_pruned,
    load_rows,
    print_json,
    refuse_existing,
)
from hf_prune.cli.options import options_of, parsed


def score(
    dataset: Annotated[Path, typer.Argument(help="Training rows as the Trainer got them (save_to_disk).")],
    trajectory: Annotated[Path, typer.Argument(help="What TrajectoryCallback recorded.")],
    out: Annotated[Path, typer.Argument(help="Directory for the scored dataset; must be new.")],
    model: Annotated[str, typer.Option(help="The trained model (save_pretrained), or its id on the Hub.")],
    eval_dataset: Annotated[Path | None, typer.Option(help="Held-out rows (save_to_disk).")] = None,
    directions: Annotated[int, typer.Option(help="Length of an influence vector.")] = ScoringConfig.directions,
    space: Annotated[str, typer.Option(help="outputs or parameters.")] = ScoringConfig.space,
    mode: Annotated[str, typer.Option(help="expected or visits.")] = ScoringConfig.mode,
    curvature: Annotated[
        str, typer.Option(help="auto, exact, gauss-newton, fisher or none.")
    ] = ScoringConfig.curvature,
    batch_size: Annotated[int | None, typer.Option(help="Rows in one forward pass.")] = None,
    num_proc: Annotated[int | None, typer.Option(help="Processes for the pass over the rows.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the directions.")] = ScoringConfig.seed,
    column: Annotated[str, typer.Option(help="Name of the columns.")] = ScoringConfig.column,
    until: Annotated[
        int | None,
        typer.Option(help="Score the run up to this step. [default: the model's]"),
    ] = ScoringConfig.until,
    draws: Annotated[int, typer.Option(help="Average over so many draws of random rows.")] = ScoringConfig.draws,
    json: JsonFlag = False,
) -> None:
    """Add the influence columns to a dataset.

    For models of transformers and rows that need no collator of their own; for others call add_influence in Python.
    """
    refuse_existing(out)
    with clean_stdout():
        from hf_prune._core.scoring import require_scoring
        from hf_prune.influence import add_influence
        from hf_prune.trajectory import Trajectory

        rows = load_rows(dataset)
        held_out = None if eval_dataset is None else load_rows(eval_dataset)
        record = Trajectory.open(trajectory)
        scored = add_influence(
            rows,
            record,
            model=_trained_model(model, record.manifest.model),
            eval_dataset=held_out,
            directions=directions,
            space=space,
            mode=mode,
            curvature=curvature,
            batch_size=batch_size,
            num_proc=num_proc,
            seed=seed,
            column=column,
            until=until,
            draws=draws,
        )
        scored.save_to_disk(str(out))
    if json:
        print_json({"rows": len(scored), "directory": str(out), "scoring": require_scoring(scored).config.to_dict()})
    else:
        typer.echo(f"Scored {len(scored):,} rows into {out}.")


def attribute(
    trajectory: Annotated[Path, typer.Argument(help="What TrajectoryCallback recorded.")],
    dataset: Annotated[Path, typer.Option(help="Training rows as the Trainer got them (save_to_disk).")],
    model: Annotated[str, typer.Option(help="The trained model or adapter (save_pretrained), or its id on the Hub.")],
    query: Annotated[list[str] | None, typer.Option(help="What the model said; may be repeated.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What it was given, the same for each --query.")] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="A file of JSON lines (texts, prompts with completions, chats), or rows (save_to_disk)."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Directory or Hub id. [default: the model's]")] = None,
    k: Annotated[int, typer.Option(help="Rows at the top and at the bottom of each query.")] = AttributionConfig.k,
    tokens: Annotated[str | None, typer.Option(help="query or row: tell their tokens apart.")] = None,
    mode: Annotated[str, typer.Option(help="expected or visits.")] = AttributionConfig.mode,
    engine: Annotated[str, typer.Option(help="auto, dense or projected.")] = AttributionConfig.engine,
    curvature: Annotated[
        str, typer.Option(help="auto, exact, gauss-newton, fisher or none.")
    ] = AttributionConfig.curvature,
    batch_size: Annotated[int | None, typer.Option(help="Rows in one forward pass.")] = None,
    until: Annotated[int | None, typer.Option(help="Ask the run as it was then. [default: the model's step]")] = None,
    draws: Annotated[int, typer.Option(help="Average over so many draws of random rows.")] = AttributionConfig.draws,
    output: Annotated[Path | None, typer.Option(help="Write all of it to this safetensors file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page that needs no network.")] = None,
    json: JsonFlag = False,
) -> None:
    """Say which training rows made the model say this.

    For models of transformers, with adapters of peft, and rows that need no collator of their own; for others call
    attribute in Python. A positive influence means that the row helped.
    """
    if (queries is None) == (not query):
        raise ValueError("There is nothing to ask, or too much: pass either --query or --queries.")
    if prompt is not None and not query:
        raise ValueError("--prompt goes with --query: put the prompts of --queries into its file.")
    with clean_stdout():
        from rich.console import Console

        from hf_prune.attribution.api import attribute as attribute_rows
        from hf_prune.cli.show import attribution_table
        from hf_prune.trajectory import Trajectory

        record = Trajectory.open(trajectory)
        asked: Any = [text if prompt is None else {"prompt": prompt, "completion": text} for text in query or ()]
        found = attribute_rows(
            record,
            asked if queries is None else _queries(queries),
            dataset=load_rows(dataset),
            model=_trained_model(model, record.manifest.model),
            processing_class=_tokenizer(tokenizer or model, required=tokenizer is not None),
            k=k,
            tokens=tokens,
            mode=mode,
            engine=engine,
            curvature=curvature,
            batch_size=batch_size,
            until=until,
            draws=draws,
        )
        if output is not None:
            found.save(output)
        if report is not None:
            from hf_prune.report import ReportData, attributed_queries, write_report

            page = ReportData(title="Which rows made it say that?", attributed=attributed_queries(found))
            write_report(report, page)
    if json:
        print_json({"queries": len(found), "rows": found.influence.shape[1], "found": found.to_dataset().to_list()})
        return
    for number in range(len(found)):
        Console().print(attribution_table(found, number))


def _queries(file: Path) -> Any:
    """Rows, or a list of what stands in the lines of a file."""
    from hf_prune._core.reading import Reader

    if file.is_dir():
        return load_rows(file)
    reader = Reader(ValueError, 'write each query as a line such as {"prompt": "...", "completion": "..."}')
    content = reader.content(file)
    if content is None:
        raise FileNotFoundError(f"There is no {file}: pass a file of JSON lines, or a directory of save_to_disk.")
    lines = enumerate(content.splitlines(), 1)
    return [reader.value(line, f"Line {number} of {file}") for number, line in lines if line.strip()]


def _tokenizer(name: str, required: bool) -> Any:
    """The tokenizer next to the model; None where there is none, for rows that are prepared need none."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        if required:
            raise
        return None


@options_of(SelectionConfig)
def prune(
    dataset: Annotated[Path, typer.Argument(help="A scored dataset (save_to_disk).")],
    out: Annotated[Path, typer.Argument(help="Directory for the pruned dataset; must be new.")],
    probe: Annotated[
        str | None,
        typer.Option(help="module:function that makes a Trainer: finds out by retraining which rows to prefer."),
    ] = None,
    probe_eval: Annotated[
        Path | None, typer.Option(help="Rows the probe measures on (save_to_disk); not those of verify.")
    ] = None,
    probe_metric: Annotated[str, typer.Option(help="As verify's --metric.")] = "accuracy",
    probe_cost: Annotated[float, typer.Option(help="What it may cost, in trainings on all rows.")] = 8.0,
    probe_steps: Annotated[
        int | None, typer.Option(help="Compare for equal steps, this many; without it for equal epochs.")
    ] = None,
    raw: Annotated[
        Path | None,
        typer.Option(help="The rows before they were prepared for the Trainer (save_to_disk): save theirs instead."),
    ] = None,
    unseen: Annotated[str | None, typer.Option(help="keep or drop raw rows that were not scored.")] = None,
    include_scores: Annotated[bool, typer.Option("--include-scores", help="Save the influence columns.")] = False,
    json: JsonFlag = False,
    **options: Any,
) -> None:
    """Keep the rows that the model needs, and save them with their provenance."""
    if raw is None and unseen is not None:
        raise ValueError("--unseen is about raw rows: pass --raw too.")
    if (probe is None) != (probe_eval is None):
        raise ValueError("A probe needs a Trainer and rows to measure on: pass both --probe and --probe-eval.")
    asked = parsed(SelectionConfig, options)
    refuse_existing(out)
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


def _probe(name: str, rows: Path, metric: str, cost: float, steps: int | None, out: Path) -> Any:
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
    pruned: Annotated[Path, typer.Argument(help="A pruned dataset (save_to_disk).")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    source: Annotated[
        Path | None, typer.Option(help="The scored dataset it came from: shows the dropped rows too.")
    ] = None,
    verification: Annotated[Path | None, typer.Option(help="What `hf-prune verify --out` wrote.")] = None,
    attribution: Annotated[Path | None, typer.Option(help="What `hf-prune attribute --output` wrote.")] = None,
    json: JsonFlag = False,
) -> None:
    """Write a report on a pruned dataset as one HTML page that needs no network."""
    with clean_stdout():
        from hf_prune.attribution.result import Attribution
        from hf_prune.publish.replay import Record
        from hf_prune.report import ReportData, attributed_queries, how_it_was_made, selection_parts, write_report

        kept = load_rows(pruned)
        record = Record.open(str(pruned))
        if source is None:
            selection, rows = record.selection(), kept
        else:
            rows = load_rows(source)
            selection = load_pruned(pruned, rows).selection
        data = ReportData(
            title=f"Pruning report: {pruned.resolve().name}",
            made=how_it_was_made(record.provenance),
            **selection_parts(selection, rows),
            attributed=() if attribution is None else attributed_queries(Attribution.load(attribution)),
            **_verified(verification, selection),
        )
        write_report(out, data)
    if json:
        print_json({"report": str(out), "bytes": out.stat().st_size})
    else:
        typer.echo(f"Wrote {out}.")


def _verified(file: Path | None, selection: Any) -> dict[str, Any]:
    if file is None:
        return {}
    from hf_prune.report import Curve, gaps
    from hf_prune.verification import Verification

    found = Verification.load(file)
    n, kept = selection.n_rows, len(selection.keep_indices)
    if (found.full.rows, found.pruned.rows) != (n, kept):
        raise ValueError(
            f"{file} is about {found.pruned.rows} of {found.full.rows} rows, the selection about {kept} of {n}: pass "
            "the verification of this dataset."
        )
    rate = round(1 - kept / n, 4)
    return {"curve": Curve.of({rate: found}), "gaps": gaps(rate, selection, found)}


def _trained_model(name: str, recorded: dict[str, Any]) -> Any:
    """The class is the recorded one: the Auto classes would have to guess the head."""
    import transformers

    wanted = str(recorded.get("class"))
    kind = getattr(transformers, wanted, None)
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind.from_pretrained(name)
    if wanted.startswith("PeftModelFor"):
        import peft

        return getattr(peft, f"Auto{wanted}").from_pretrained(name, is_trainable=True)
    raise ValueError(
        f"The run trained a {recorded.get('class')}, which is not a model of transformers: call add_influence in "
        "Python with the model."
    )
