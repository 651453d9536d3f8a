"""Making a published subset again, and saying in words what differs where it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.digest import column_digests, combine
from hf_prune._core.scoring import require_scoring
from hf_prune.publish import media
from hf_prune.publish.limits import ReplayError
from hf_prune.publish.provenance import scoring_record
from hf_prune.publish.record import Record

logger = logging.getLogger(__name__)


def replay(
    repo_id: str,
    *,
    config_name: str = "default",
    revision: str | None = None,
    source: Dataset | None = None,
    columns: list[str] | None = None,
    level: int = 1,
    trajectory: Any = None,
    model: Any = None,
    eval_dataset: Dataset | None = None,
    train_dataset: Dataset | None = None,
    token: str | None = None,
    **scoring: Any,
) -> Dataset:
    """Makes the rows of a published pruned dataset again, from its source and its provenance.

    Level 1 takes the recorded ids from the source, after comparing the content of the source with the recorded
    digests, and compares the digests of what comes out, and of the rows that are published, with those that were
    recorded. Level 2 does not trust the ids: it scores and selects again from the trajectory, and compares them too.

    From the Hub only plain data is loaded, at one commit, and never a script or a file of this machine.

    Args:
        repo_id (`str`): the pruned dataset on the Hub, or a directory that `save_to_disk` wrote.
        config_name (`str`, *optional*, defaults to `"default"`): the config.
        revision (`str`, *optional*): branch, tag or commit of the pruned dataset.
        source (`datasets.Dataset`, *optional*): the rows that were pruned. By default the recorded source is loaded
            from the Hub at its recorded commit.
        columns (`list[str]`, *optional*): compare and return these columns only, where the source lacks the others.
        level (`int`, *optional*, defaults to 1): 1 or 2.
        trajectory (`str`, `Path` or `Trajectory`, *optional*): the recorded run, for level 2.
        model (`torch.nn.Module`, *optional*): the trained model, for level 2.
        eval_dataset (`datasets.Dataset`, *optional*): the held-out rows, for level 2.
        train_dataset (`datasets.Dataset`, *optional*): what the Trainer got, for level 2 where the selection was
            applied to raw rows.
        token (`str`, *optional*): defaults to the one that is logged in.
        **scoring: further arguments of `add_influence` for level 2 (`data_collator`, `loss`, `batch_size`).

    Returns:
        `datasets.Dataset`: the same rows in the same order, without the score columns.

    Raises:
        [`ReplayError`]: names every digest or id that differs.
        `ValueError`: for arguments that do not fit.
    """
    if level not in (1, 2):
        raise ValueError(f"level={level} is not known: 1 takes the recorded ids, 2 selects them again.")
    if level == 2 and (trajectory is None or model is None):
        raise ValueError("Level 2 scores again: pass the trajectory=, the model= and the eval_dataset= of the run.")
    if level == 1 and (scoring or any(x is not None for x in (trajectory, model, eval_dataset, train_dataset))):
        raise ValueError("trajectory, model, eval_dataset, train_dataset and further arguments belong to level=2.")
    record = Record.open(repo_id, config_name=config_name, revision=revision, token=token)
    rows = record.source_rows(token) if source is None else source
    names = _check_source(record, rows, columns)
    if level == 2:
        _check_ids(record, _select_again(record, rows, train_dataset, trajectory, model, eval_dataset, scoring))
    made = rows.select(record.keep_indices.tolist()).select_columns(names)
    _check_result(record, made)
    # an address named by somebody else's row is never contacted
    _check_published(record, record.published_rows(token), made, remote=source is not None)
    kept, of = len(made), record.provenance["source"]["rows"]
    logger.info(
        "Replayed %s: %d of %d rows, compared with the published ones and the same (level %d).",
        repo_id,
        kept,
        of,
        level,
    )
    return made


def _check_source(record: Record, rows: Dataset, columns: list[str] | None) -> list[str]:
    """Returns the columns that are rebuilt, in the source's order, once the source is known to be the same."""
    origin = record.provenance["source"]
    if len(rows) != origin["rows"]:
        raise ReplayError("This is not the pruned source.", [f"it has {len(rows)} rows, not {origin['rows']}"])
    recorded: Mapping[str, str] = origin["columns"]
    wanted = list(recorded) if columns is None else columns
    unknown = [name for name in wanted if name not in recorded]
    if unknown:
        raise ValueError(f"The provenance has no column {unknown[0]!r}: its columns are {', '.join(recorded)}.")
    missing = [name for name in wanted if name not in rows.column_names]
    if missing:
        present = [name for name in wanted if name in rows.column_names]
        raise ReplayError(
            "The source lacks columns that were made after it was loaded: pass source= the dataset that was pruned or "
            f"columns={present!r} to rebuild only these.",
            [f"column {name!r} is missing" for name in missing],
        )
    digests = column_digests(rows, wanted)
    altered = [
        f"column {name!r} has content digest {digests[name]}, and {recorded[name]} was recorded"
        for name in wanted
        if digests[name] != recorded[name]
    ]
    if altered:
        raise ReplayError("The source is not the one that was pruned: a row was altered, added or moved.", altered)
    return [name for name in rows.column_names if name in wanted]


def _check_result(record: Record, made: Dataset) -> None:
    recorded = record.provenance["result"]
    digests = column_digests(made)
    differing = [
        f"column {name!r} of the published rows has digest {recorded['columns'][name]}, these have {digest}"
        for name, digest in digests.items()
        if name in recorded["columns"] and recorded["columns"][name] != digest
    ]
    whole = set(digests) == set(recorded["columns"])
    if whole and not differing and combine(len(made), digests) != recorded["content_digest"]:
        differing = [f"the published rows have content digest {recorded['content_digest']}, not that of their columns"]
    if differing:
        raise ReplayError("The rows are not the published ones, which were changed after the selection.", differing)
    for name in sorted(set(recorded["columns"]) - set(digests)):
        logger.warning("Column %r of the published rows is not in the source and was not rebuilt.", name)


def _check_published(record: Record, published: Dataset, made: Dataset, remote: bool) -> None:
    """The rows that are there must be those that the provenance describes, whatever it says itself."""
    recorded = record.provenance["result"]
    columns: Mapping[str, str] = recorded["columns"]
    if len(published) != recorded["rows"]:
        raise ReplayError(
            "The published rows are not those of the provenance.",
            [f"{len(published)} rows are published, and {recorded['rows']} were recorded"],
        )
    present = [name for name in columns if name in published.column_names]
    digests = column_digests(published, present)
    other = [name for name in present if digests[name] != columns[name]]
    digests |= _embedded(made, other, digests, columns, remote)
    differences = [f"column {name!r} is not published" for name in columns if name not in present]
    differences += [
        f"column {name!r} is published and was not recorded"
        for name in published.column_names
        if name not in columns and name not in recorded["score_columns"]
    ]
    differences += [
        f"column {name!r} of the published rows has digest {digests[name]}, and {columns[name]} was recorded"
        for name in present
        if digests[name] != columns[name]
    ]
    if differences:
        raise ReplayError("The published rows are not those of the provenance.", differences)


def _embedded(
    made: Dataset, names: list[str], published: Mapping[str, str], recorded: Mapping[str, str], remote: bool
) -> dict[str, str]:
    """Recorded digests of the columns whose files were only moved into the rows when they were published."""
    moved = [name for name in names if name in media.columns(made)]
    if not moved:
        return {}
    plain = made.select_columns(moved).with_format("arrow")
    digests = column_digests(
        plain.map(partial(media.embed, remote=remote), batched=True, batch_size=100, keep_in_memory=True)
    )
    return {name: recorded[name] for name in moved if digests[name] == published[name]}


def _select_again(
    record: Record,
    rows: Dataset,
    train_dataset: Dataset | None,
    trajectory: Any,
    model: Any,
    eval_dataset: Dataset | None,
    scoring: dict[str, Any],
) -> tuple[np.ndarray, list[str]]:
    """The ids of a new selection, and what is known to differ from the recorded one before they are compared."""
    from hf_prune.influence.api import add_influence
    from hf_prune.selection import select

    known = scoring_record(record.provenance)
    if known is None:
        raise ReplayError("The provenance does not say how the scores were made: only level 1 can be replayed.")
    if (record.applied is None) != (train_dataset is None):
        raise ValueError(
            "The selection was applied to raw rows: pass as train_dataset= what the Trainer got."
            if train_dataset is None
            else "The source is what the Trainer got: leave train_dataset out."
        )
    trained = rows if train_dataset is None else train_dataset
    plain = trained.remove_columns(InfluenceColumns(known.config.column).among(trained.column_names))
    arguments = known.config.arguments() | scoring
    scored = add_influence(plain, trajectory, model=model, eval_dataset=eval_dataset, **arguments)
    selection = select(scored, **record.provenance["selection"]["arguments"])
    if record.applied is not None:
        unseen = "keep" if record.applied.unseen_kept else "drop"
        selection = selection.apply(rows, unseen=unseen).selection
    now, before = require_scoring(scored), known.config.to_dict()
    differences = [
        f"{name} is {value}, and {before[name]} was recorded"
        for name, value in now.config.to_dict().items()
        if value != before[name]
    ]
    digests = [None if run is None else run.trajectory_digest for run in (now.run, known.run)]
    if digests[0] != digests[1]:
        differences.append(f"the trajectory has digest {digests[0]}, and {digests[1]} was recorded")
    return selection.keep_indices, differences


def _check_ids(record: Record, again: tuple[np.ndarray, list[str]]) -> None:
    ids, differences = again
    new, gone = np.setdiff1d(ids, record.keep_indices), np.setdiff1d(record.keep_indices, ids)
    if len(new) or len(gone):
        changed = [
            f"{len(new)} rows are kept that were dropped (first {new[:5].tolist()}), and {len(gone)} are dropped that "
            f"were kept (first {gone[:5].tolist()}), of {len(record.keep_indices)}"
        ]
        raise ReplayError("Scoring and selecting again keeps other rows.", changed + differences)
    for difference in differences:
        logger.warning("The same rows are kept, although %s.", difference)
