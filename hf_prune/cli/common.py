"""What several commands share: datasets on disk, JSON on stdout, and a stdout that holds nothing else."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_prune.selection import PrunedDataset

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one line of JSON to stdout, and nothing else there.")]


@contextlib.contextmanager
def clean_stdout() -> Iterator[None]:
    """While it lasts, what anything prints goes to stderr: stdout belongs to the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(values: Any) -> None:
    """One line of strict JSON."""
    typer.echo(json.dumps(values, allow_nan=False))


def load_rows(directory: Path) -> Dataset:
    """A dataset that `save_to_disk` wrote."""
    from datasets import Dataset, load_from_disk

    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory {directory}: pass one that Dataset.save_to_disk wrote.")
    loaded = load_from_disk(str(directory))
    if not isinstance(loaded, Dataset):
        raise ValueError(f"{directory} holds a DatasetDict: pass the directory of a split, such as {directory}/train.")
    return loaded


def refuse_existing(directory: Path) -> None:
    """Nothing is written over: a dataset may be the only copy."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} already exists and is not empty: pass a new directory.")


def load_pruned(directory: Path, source: Dataset) -> PrunedDataset:
    """
    Makes the [`PrunedDataset`] of a saved directory again, from its source and its provenance.

    Args:
        directory (`Path`): What `PrunedDataset.save_to_disk` wrote.
        source (`Dataset`): The dataset that was pruned.

    Raises:
        `ValueError`: If the source is another one.
    """
    from hf_prune.publish.replay import Record, replay
    from hf_prune.selection import PrunedDataset

    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory {directory}: pass one that PrunedDataset.save_to_disk wrote.")
    replay(str(directory), source=source)  # compares source and rows with the recorded digests
    return PrunedDataset.from_source(source, Record.open(str(directory)).selection())


def function_of(option: str, name: str) -> Any:
    """`module:function`, of the working directory too, as other tools that take such a name do it."""
    module, separator, attribute = name.partition(":")
    if not separator or not module or not attribute:
        raise ValueError(
            f"{option} {name!r} is not a function's name: pass module:function, such as train:make_trainer."
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise ValueError(f"The module {module} has no function {attribute}: check {option}.")
    return found
