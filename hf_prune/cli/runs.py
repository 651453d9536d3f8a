"""Commands on training runs: `demo`, `diagnose`, `estimate`, `gather`, `inspect` and `verify`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune.cli.common import JsonFlag, clean_stdout, print_json, write_json
from hf_prune.cli.places import (
    MODEL,
    ROWS,
    TRAJECTORY,
    check_function,
    function_of,
    load_model,
    load_pruned,
    load_rows,
    place_of,
    require_model,
    require_rows,
    require_trajectory,
)

UNTRUSTED = 3
"""Exit code of `diagnose` where the scores are not to be trusted."""


def demo(
    task: Annotated[str, typer.Option(help="digits (a small ViT) or text (MiniLM; needs the extra demo).")] = "digits",
    out: Annotated[Path, typer.Option(help="For report, trajectory and pruned rows.")] = Path("hf-prune-demo"),
    seeds: Annotated[int | None, typer.Option(min=1, help="Retrainings of each arm. [default: the task's]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: the figures mean nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Fine-tune, score, prune, retrain and report on real data, offline, in minutes on two cores."""
    with clean_stdout():
        from rich.console import Console

        from hf_prune.demo import Sizes, make_task, run_demo
        from hf_prune.demo.show import report, table

        sizes = Sizes(train=120, dev=30, test=30, epochs=2, directions=8) if quick else None
        result = run_demo(make_task(task, sizes), out, seeds=seeds)
        page = report(result, out / "report.html")
    Console(stderr=json).print(table(result))
    if json:
        print_json(result.to_dict())
    else:
        typer.echo(f"Report: {page}")


def inspect(
    trajectory: Annotated[Path, typer.Argument(help=TRAJECTORY)],
    spikes: Annotated[
        bool, typer.Option("--spikes", help="Name the steps whose loss stands out, and the rows behind them.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help=f"With --spikes: training rows, to show them in words: {ROWS}.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Sum up a recorded training run, or look for spikes of its loss."""
    if dataset is not None and not spikes:
        raise ValueError("--dataset goes with --spikes: pass both.")
    require_trajectory(trajectory)
    require_rows(dataset)
    if spikes:
        _inspect_spikes(trajectory, dataset, json)
        return
    with clean_stdout():
        from hf_prune.trajectory import summarize

        summary = summarize(trajectory)
    if json:
        print_json(summary)
    else:
        _print_table(f"Trajectory {summary['run_id']}", summary)


def gather(
    trajectory: Annotated[Path, typer.Argument(help="The main process's output_dir, with the snapshots.")],
    others: Annotated[list[Path], typer.Argument(help="Those of other machines, copied to this one.")],
    json: JsonFlag = False,
) -> None:
    """Bring together what machines without a common disk recorded of a run that was killed."""
    for place in (trajectory, *others):
        require_trajectory(place)
    with clean_stdout():
        from hf_prune.trajectory import gather, summarize

        gather(trajectory, others)
        summary = summarize(trajectory)
    if json:
        print_json(summary)
    else:
        _print_table(f"Trajectory {summary['run_id']}", summary)


def _inspect_spikes(trajectory: Path, dataset: str | None, json: bool) -> None:
    with clean_stdout():
        from rich.console import Console

        from hf_prune.cli.show import spikes_table
        from hf_prune.trajectory import Trajectory, find_spikes

        record = Trajectory.open(trajectory)
        found = find_spikes(record)
        ids = {row.id for spike in found.spikes for row in spike.rows}
        texts = {} if dataset is None else _texts_of(load_rows(dataset), record, ids)
    if json:
        print_json(found.to_dict() | {"texts": {str(row): text for row, text in texts.items()}})
        return
    if found.spikes:
        Console().print(spikes_table(found, texts))
    else:
        typer.echo("No step stands out.")
    for note in found.notes:
        typer.echo(note)


def _texts_of(rows: Any, record: Any, ids: set[int]) -> dict[int, str]:
    """Rows in words, by the ids that they were recorded with."""
    from hf_prune.attribution.words import RowWords
    from hf_prune.influence.checks import check_dataset
    from hf_prune.model.replay import row_positions

    check_dataset(rows, record)
    positions = row_positions(rows, record) or {row: row for row in ids}
    found = RowWords(rows, id_column=record.id_column)(positions[row] for row in sorted(ids))
    return {one.id: " · ".join(filter(None, (one.text, one.label))) for one in found.values()}


def diagnose(
    dataset: Annotated[str, typer.Argument(help=f"Training rows, scored or not: {ROWS}.")],
    trajectory: Annotated[Path, typer.Argument(help=TRAJECTORY)],
    model: Annotated[str, typer.Option(help=f"The trained model: {MODEL}.")],
    eval_dataset: Annotated[str, typer.Option(help=f"Held-out rows: {ROWS}.")],
    group: Annotated[
        list[float] | None,
        typer.Option(help="Share of a random group; may be repeated. [default: .05 .05 .2 .2]"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Re-run at most this many steps. [default: the window]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Held-out rows in one forward pass.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the groups.")] = 0,
    until: Annotated[int | None, typer.Option(help="Judge the run up to this step. [default: the model's]")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")] = None,
    json: JsonFlag = False,
) -> None:
    """Say how far to trust the scores of a run, by re-running part of it without some rows.

    Ends with 0 if they are to be trusted for choosing subsets, with 3 if not, and with 1 after an error.

    For models of transformers and rows that need no collator of their own; for others call diagnose in Python.

    Example: hf-prune diagnose run/scored run/trajectory --model run/model --eval-dataset run/dev
    """
    require_rows(dataset, eval_dataset)
    require_trajectory(trajectory)
    require_model(model)
    with clean_stdout():
        from hf_prune.diagnosis import diagnose as diagnose_run
        from hf_prune.trajectory import Trajectory

        record = Trajectory.open(trajectory)
        shares: dict[str, Any] = {"groups": tuple(group)} if group else {}
        found = diagnose_run(
            load_rows(dataset),
            record,
            model=load_model(model, record.manifest.model),
            eval_dataset=load_rows(eval_dataset),
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            until=until,
            **shares,
        )
    if out is not None:
        write_json(out, found.to_dict())
    if json:
        print_json(found.to_dict())
    else:
        typer.echo(found.explain())
    if not found.trusted:
        raise typer.Exit(UNTRUSTED)


def estimate(
    model: Annotated[str, typer.Option(help=f"The model, of which only the config is read: {MODEL}.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows of the training set.")],
    batch_size: Annotated[int, typer.Option(min=1, help="per_device_train_batch_size.")] = 8,
    epochs: Annotated[float, typer.Option(help="num_train_epochs.")] = 3.0,
    accumulation: Annotated[int, typer.Option(min=1, help="gradient_accumulation_steps.")] = 1,
    window: Annotated[float, typer.Option(help="Share of the run to record, from its end.")] = 0.5,
    snapshots_per_epoch: Annotated[float, typer.Option(help="Snapshots in an epoch of the window.")] = 1.0,
    parameters: Annotated[str | None, typer.Option(help="Regular expression for the parameters to record.")] = None,
    snapshot_dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    step_seconds: Annotated[float | None, typer.Option(help="Seconds of one training step, if known.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row, for the memory of scoring.")] = None,
    json: JsonFlag = False,
) -> None:
    """Estimate disk, memory and scoring time before training."""
    require_model(model)
    with clean_stdout():
        import tempfile
        from dataclasses import asdict

        from transformers import TrainingArguments

        from hf_prune._estimate import estimate as estimate_run

        with tempfile.TemporaryDirectory() as scratch:
            args = TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=batch_size,
                num_train_epochs=epochs,
                gradient_accumulation_steps=accumulation,
                report_to=[],
                use_cpu=True,
            )
            found = estimate_run(
                _empty_model(model),
                args,
                rows,
                window=window,
                snapshots_per_epoch=snapshots_per_epoch,
                parameters=parameters,
                snapshot_dtype=snapshot_dtype,
                step_seconds=step_seconds,
                length=length,
            )
        values = asdict(found)
    if json:
        print_json(values)
    else:
        _print_table("Estimate", values)


def verify(
    full: Annotated[str, typer.Argument(help=f"All training rows, scored or not: {ROWS}.")],
    pruned: Annotated[str, typer.Argument(help=f"The pruned rows: {ROWS}.")],
    factory: Annotated[str, typer.Option(help="module:function that makes a Trainer of (train_dataset, seed).")],
    eval_dataset: Annotated[str, typer.Option(help=f"Rows to measure on, used for no choice: {ROWS}.")],
    metric: Annotated[
        str, typer.Option(help="accuracy, loss, a metric of compute_metrics, or the path of an evaluate module.")
    ] = "accuracy",
    seeds: Annotated[int, typer.Option(min=1, help="Retrainings of each arm.")] = 3,
    budget: Annotated[str, typer.Option(help="What all arms have the same number of: epochs or steps.")] = "epochs",
    random: Annotated[bool, typer.Option(help="Also train on as many random rows.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write all figures to this JSON file. What was retrained is kept beside it until then, for the next "
            "call to go on."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Retrain on all, pruned and random rows with your own Trainer, and measure the gap.

    The factory is a function of yours, such as this one in train.py of the working directory:

    def make_trainer(train_dataset, seed):
        args = TrainingArguments("out", seed=seed, num_train_epochs=3)
        return Trainer(fresh_model(), args, train_dataset=train_dataset)

    Examples:

    hf-prune verify run/scored run/half --factory train:make_trainer --eval-dataset run/test
    hf-prune verify run/scored run/half --factory train:make_trainer --eval-dataset run/test
        --metric f1 --budget steps --seeds 5 --out run/verification.json
    """
    check_function("--factory", factory)
    require_rows(full, pruned, eval_dataset)
    kept = None if out is None else out.with_name(f"{out.name}-retrainings")  # for one that is killed
    with clean_stdout():
        from hf_prune._core.columns import InfluenceColumns
        from hf_prune.model.rows import LABELS
        from hf_prune.verification import verify as verify_rows

        rows = load_rows(full)
        subset = load_pruned(pruned, rows)
        scores = InfluenceColumns(subset.selection.config.column)
        plain = rows.remove_columns([name for name in scores if name in rows.column_names and name not in LABELS])
        result = verify_rows(
            function_of("--factory", factory),
            plain,
            subset,
            eval_dataset=load_rows(eval_dataset),
            seeds=seeds,
            metric=metric,
            budget=budget,
            random=random,
            directory=kept,
        )
    if out is not None:
        write_json(out, result.to_dict())
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    if json:
        print_json(result.to_dict())
    else:
        typer.echo(result.explain())


def _empty_model(name: str) -> Any:
    """A model without weights, of the class that its config names."""
    import torch
    import transformers

    place, revision = place_of(name)
    config = transformers.AutoConfig.from_pretrained(place, revision=revision or "main")
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        raise ValueError(f"The config of {name} does not name a model class of transformers: call estimate in Python.")
    with torch.device("meta"):
        return kind(config)


def _print_table(title: str, values: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hf_prune.cli.show import figures

    grid = Table(title=title, title_justify="left", show_header=False)
    for name, value in figures(values):
        grid.add_row(Text(name), Text(value))  # Text: a value may hold what rich would read as markup
    Console().print(grid)
