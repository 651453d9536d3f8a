"""What several commands share: datasets on disk, JSON on stdout, and a stdout that holds nothing else."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_prune.selection import PrunedDataset

SCORING_FILE = "hf_prune_scoring.json"

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
    """A dataset that `save_to_disk` wrote, with what `hf-prune score` noted beside it."""
    from datasets import Dataset, load_from_disk

    from hf_prune.influence.info import with_scoring

    if not directory.is_dir():
        raise FileNotFoundError(f"There is no directory {directory}: pass one that Dataset.save_to_disk wrote.")
    loaded = load_from_disk(str(directory))
    if not isinstance(loaded, Dataset):
        raise ValueError(f"{directory} holds a DatasetDict: pass the directory of a split, such as {directory}/train.")
    notes = directory / SCORING_FILE
    return with_scoring(loaded, json.loads(notes.read_text(encoding="utf-8"))) if notes.is_file() else loaded


def save_scored(scored: Dataset, directory: Path) -> None:
    """Saves a scored dataset, and beside it how it was scored, which a dataset on disk does not hold."""
    refuse_existing(directory)
    scored.save_to_disk(str(directory))
    scoring = getattr(scored.info, "hf_prune", None)
    (directory / SCORING_FILE).write_text(json.dumps(scoring, indent=2) + "\n", encoding="utf-8")


def refuse_existing(directory: Path) -> None:
    """Nothing is written over: a dataset may be the only copy."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is there already and not empty: pass a new directory.")


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
    record = Record.open(str(directory))
    return PrunedDataset.from_source(source, selection_of(record.provenance, record.keep_indices))


def selection_of(provenance: dict[str, Any], keep_indices: Any) -> Any:
    """The [`Selection`] that a provenance describes."""
    import numpy as np

    from hf_prune.selection import Selection
    from hf_prune.selection.certificate import Certificate

    recorded = provenance["selection"]
    rows = np.arange(provenance["source"]["rows"])
    return Selection(
        keep_indices=keep_indices,
        drop_indices=np.setdiff1d(rows, keep_indices),
        certificate=Certificate.from_dict(recorded["certificate"]),
        arguments=recorded["arguments"] | {"resolved": recorded["resolved"]},
        scoring=_scoring_of(provenance),
    )


def _scoring_of(provenance: dict[str, Any]) -> dict[str, Any] | None:
    """How the columns were made, as far as a provenance says it: it makes the same provenance again."""
    influence, training = provenance["influence"], provenance["training"]
    if influence is None and training is None:
        return None
    scoring: dict[str, Any] = {}
    if influence is not None:
        scoring["influence"] = influence
    if training is not None:
        model = training["model"]
        manifest = {
            **training["run"],
            "model": {"class": model["class"], "name_or_path": model["id"], "revision": model["revision"]},
            "parameters": [{"shape": [model["parameters"]]}] if model["parameters"] else [],
            "optimizer": training["optimizer"],
            "schedule": training["schedule"],
            "seeds": training["seeds"],
            "versions": training["versions"],
        }
        scoring["trajectory"] = {"digest": training["trajectory_digest"], "manifest": manifest}
    return scoring
