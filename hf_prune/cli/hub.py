"""Commands on the Hub: `push` and `replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune.cli.common import JsonFlag, clean_stdout, print_json, verification_of
from hf_prune.cli.places import (
    ROWS,
    load_pruned,
    load_rows,
    open_record,
    record_place,
    refuse_existing,
    require_rows,
)


def push(
    pruned: Annotated[str, typer.Argument(help=f"A pruned dataset: {ROWS}.")],
    repo_id: Annotated[str, typer.Argument(help="The dataset repository, such as me/imdb-half.")],
    source: Annotated[
        str, typer.Option(help=f"The scored dataset that it came from, or the raw one of prune --raw: {ROWS}.")
    ],
    verification: Annotated[
        Path | None,
        typer.Option(
            help="What hf-prune verify --out wrote: put the measured gap into the card.", exists=True, dir_okay=False
        ),
    ] = None,
    config_name: Annotated[str, typer.Option(help="The config to publish it as.")] = "default",
    split: Annotated[str | None, typer.Option(help="The split to publish it as.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch; created if it does not exist.")] = None,
    private: Annotated[bool, typer.Option("--private", help="For a repository that is created now.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    source_id: Annotated[str | None, typer.Option(help="Hub id of the source: org/name or org/name@commit.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the source.")] = None,
    include_scores: Annotated[bool, typer.Option("--include-scores", help="Publish the influence columns.")] = False,
    include_tokens: Annotated[bool, typer.Option("--include-tokens", help="Publish tokens beside texts.")] = False,
    include_dropped: Annotated[bool, typer.Option("--include-dropped", help="List the dropped ids too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card and the files, push nothing.")] = False,
    json: JsonFlag = False,
) -> None:
    """Push a pruned dataset to the Hub with its card and provenance.

    Example: hf-prune push run/half me/imdb-half --source run/scored --verification run/verification.json --dry-run
    """
    require_rows(pruned, source)
    with clean_stdout():
        from hf_prune.publish.push import Plan, push_to_hub

        rows = load_pruned(pruned, load_rows(source))
        known = open_record(pruned).provenance
        observed = known["observed"]
        if verification is not None:
            observed = verification_of(verification, rows.selection).observed()
        done = push_to_hub(
            rows,
            repo_id,
            config_name=config_name,
            split=split,
            revision=revision,
            private=private or None,
            create_pr=create_pr,
            source_id=source_id or _source_id(known),
            license=license,
            include_scores=include_scores,
            include_tokens=include_tokens,
            include_dropped=include_dropped,
            observed=observed,
            dry_run=dry_run,
        )
    if isinstance(done, Plan):
        if json:
            print_json({"dry_run": True, "repo_id": done.repo_id, "files": done.files, "provenance": done.provenance})
        else:
            typer.echo(done.card)
            for name, size in done.files.items():
                typer.echo(f"{size:>12,}  {name}")
    elif json:
        print_json({"repo_id": repo_id, "commit": done.oid, "url": done.commit_url, "pull_request": done.pr_url})
    else:
        typer.echo(f"Pushed {len(rows):,} rows: {done.pr_url or done.commit_url}")


def replay(
    repo_id: Annotated[str, typer.Argument(help=f"A pruned dataset: {ROWS}.")],
    source: Annotated[
        str | None, typer.Option(help=f"The rows that were pruned: {ROWS}. [default: the recorded source]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Save the rows to this new directory.")] = None,
    json: JsonFlag = False,
) -> None:
    """Rebuild a published subset from its source and provenance, and say whether it is the same.

    Takes the recorded ids and compares all content digests. To score and select again, call replay(level=2) in Python.
    """
    if out is not None:
        refuse_existing(out)
    require_rows(repo_id, source)
    with clean_stdout():
        from hf_prune.publish.replay import replay as replay_rows

        open_record(repo_id)  # of the split that was named
        rows = replay_rows(**record_place(repo_id), source=None if source is None else load_rows(source))
        if out is not None:
            rows.save_to_disk(str(out))
    if json:
        directory = None if out is None else str(out)
        print_json({"repo_id": repo_id, "rows": len(rows), "same": True, "directory": directory})
    else:
        typer.echo(f"The same {len(rows):,} rows as published.")


def _source_id(provenance: dict[str, Any]) -> str | None:
    """What the saved provenance says of the source: the dataset on disk has forgotten it."""
    source = provenance["source"]
    if source["id"] is None:
        return None
    return f"{source['id']}@{source['revision']}" if source["revision"] else str(source["id"])
