"""What several commands share: JSON, and a stdout that holds nothing else."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one line of JSON to stdout, and nothing else there.")]


@contextlib.contextmanager
def clean_stdout() -> Iterator[None]:
    """While it lasts, what anything prints goes to stderr: stdout belongs to the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(values: Any) -> None:
    """One line of strict JSON."""
    typer.echo(json.dumps(values, allow_nan=False))


def write_json(file: Path, values: dict[str, Any]) -> None:
    """A file of JSON for people too; its directory is made if it does not exist."""
    from hf_prune._core.io import write_bytes

    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, (json.dumps(values, indent=2) + "\n").encode())


def verification_of(file: Path, selection: Any) -> Any:
    """
    What `hf-prune verify --out` wrote about a selection.

    Raises:
        `ValueError`: If it is about another one.
    """
    from hf_prune.verification import Verification

    found = Verification.load(file)
    n, kept = selection.n_rows, len(selection.keep_indices)
    if (found.full.rows, found.pruned.rows) != (n, kept):
        raise ValueError(
            f"{file} is about {found.pruned.rows} of {found.full.rows} rows, the selection about {kept} of {n}: pass "
            "the verification of this dataset."
        )
    return found
