"""Making a published subset again, and saying in words what differs where it cannot be."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from hf_prune._core.digest import column_digests
from hf_prune.publish import card, files, scrub
from hf_prune.publish.provenance import SCHEMA_VERSION, combine, ids_digest, score_columns

logger = logging.getLogger(__name__)

_NEEDED = {
    "source": ("id", "revision", "config_name", "split", "rows", "content_digest", "columns"),
    "result": ("rows", "content_digest", "columns", "kept_ids_digest"),
    "selection": ("arguments",),
}
_SCORING = ("engine", "mode", "space", "curvature", "directions", "seed", "column")


class ReplayError(ValueError):
    """The rows cannot be made again; `differences` says in words what differs."""

    def __init__(self, what: str, differences: list[str]):
        super().__init__("\n- ".join([what, *differences]))
        self.differences = differences


@dataclass(frozen=True)
class Record:
    """What a repository or a directory says about a pruned dataset."""

    provenance: dict[str, Any]
    keep_indices: np.ndarray
    """Positions in the source of the rows that stay, int64 of shape `(kept,)`."""

    @classmethod
    def open(
        cls, repo_id: str, *, config_name: str = "default", revision: str | None = None, token: str | None = None
    ) -> Record:
        """Reads and checks `provenance.json` and `kept_ids.parquet`.

        Args:
            repo_id (`str`): a dataset on the Hub, or a directory.
            config_name (`str`, *optional*, defaults to `"default"`): the config.
            revision (`str`, *optional*): branch, tag or commit of the repository.
            token (`str`, *optional*): defaults to the one that is logged in.

        Raises:
            [`ReplayError`]: if a file is missing, damaged, newer than this version, or does not belong to the other.
        """
        folder = card.folder(config_name)
        contents = [_read(repo_id, f"{folder}/{name}", revision, token) for name in (files.PROVENANCE, files.KEPT_IDS)]
        document = _document(contents[0], f"{repo_id}/{folder}/{files.PROVENANCE}")
        ids = _ids(contents[1], f"{repo_id}/{folder}/{files.KEPT_IDS}")
        rows, recorded = document["source"]["rows"], document["result"]
        if ids_digest(ids) != recorded["kept_ids_digest"] or (np.diff(ids) <= 0).any() or not _within(ids, rows):
            raise ReplayError(
                f"The ids in {folder} of {repo_id} cannot be trusted: push the dataset again.",
                [f"their SHA-256 is {ids_digest(ids)}, and {recorded['kept_ids_digest']} in {files.PROVENANCE}"],
            )
        return cls(document, ids)


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
    token: str | None = None,
    **scoring: Any,
) -> Dataset:
    """Makes the rows of a published pruned dataset again, from its source and its provenance.

    Level 1 takes the recorded ids from the source, after comparing the content of the source with the recorded
    digests, and compares the digest of what comes out. Level 2 does not trust the ids: it scores and selects again
    from the trajectory, and compares the ids too.

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
    if level == 1 and (trajectory is not None or model is not None or eval_dataset is not None or scoring):
        raise ValueError("trajectory, model, eval_dataset and further arguments belong to level=2.")
    record = Record.open(repo_id, config_name=config_name, revision=revision, token=token)
    rows = _load(record, token) if source is None else source
    names = _check_source(record, rows, columns)
    if level == 2:
        _check_ids(record, _select_again(record, rows, trajectory, model, eval_dataset, scoring))
    made = rows.select(record.keep_indices.tolist()).select_columns(names)
    _check_result(record, made)
    kept, of = len(made), record.provenance["source"]["rows"]
    logger.info("Replayed %s: %d of %d rows, the same as published (level %d).", repo_id, kept, of, level)
    return made


def _read(repo_id: str, path: str, revision: str | None, token: str | None) -> bytes:
    if Path(repo_id).is_dir():
        file = Path(repo_id) / path
        if not file.is_file():
            raise ReplayError(f"{repo_id} was not published by hf_prune: it has no {path}.", [])
        return file.read_bytes()
    try:
        return Path(hf_hub_download(repo_id, path, repo_type="dataset", revision=revision, token=token)).read_bytes()
    except EntryNotFoundError as error:
        raise ReplayError(f"{repo_id} was not published by hf_prune: it has no {path}.", []) from error


def _document(content: bytes, where: str) -> dict[str, Any]:
    """The files come from strangers: what is used later is checked here."""
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ReplayError(f"{where} is not JSON: push the dataset again.", []) from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise ReplayError(f"{where} is no provenance of hf_prune.", [])
    if version > SCHEMA_VERSION:
        raise ReplayError(f"{where} has schema version {version}, newer than {SCHEMA_VERSION}: upgrade hf_prune.", [])
    for part, fields in _NEEDED.items():
        missing = [field for field in fields if field not in (document.get(part) or {})]
        if missing:
            raise ReplayError(f"{where} lacks {part}.{missing[0]}: push the dataset again.", [])
    return dict(document)


def _ids(content: bytes, where: str) -> np.ndarray:
    try:
        table = pq.read_table(pa.BufferReader(content))
        kept = table.filter(table["kept"]) if "kept" in table.column_names else table
        return kept["id"].cast(pa.int64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
        raise ReplayError(f"{where} is no Parquet file of ids: push the dataset again.", []) from error


def _within(ids: np.ndarray, rows: int) -> bool:
    return len(ids) == 0 or (ids[0] >= 0 and ids[-1] < rows)


def _load(record: Record, token: str | None) -> Dataset:
    """A stranger's id must not lead to a file of this machine, which `load_dataset` would prefer."""
    origin = record.provenance["source"]
    repo, revision = scrub.hub_id(origin["id"]), scrub.commit(origin["revision"])
    if repo is None or revision is None:
        raise ReplayError("The provenance names no commit on the Hub that the source came from: pass source=.", [])
    split = origin["split"] or "train"
    return load_dataset(repo, origin["config_name"], split=split, revision=revision, token=token)


def _check_source(record: Record, rows: Dataset, columns: list[str] | None) -> list[str]:
    """Returns the columns that are made again, in the source's order, once the source is known to be the same."""
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
            f"columns={present!r} to make only these.",
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
        logger.warning("Column %r of the published rows is not in the source and was not made again.", name)


def _select_again(
    record: Record, rows: Dataset, trajectory: Any, model: Any, eval_dataset: Dataset | None, scoring: dict[str, Any]
) -> tuple[np.ndarray, list[str]]:
    """The ids of a new selection, and what is known to differ from the recorded one before they are compared."""
    from hf_prune.influence.columns import add_influence
    from hf_prune.selection import select

    known = record.provenance["influence"]
    if known is None:
        raise ReplayError("The provenance does not say how the scores were made: only level 1 can be replayed.", [])
    arguments = {name: known[name] for name in _SCORING if name in known} | scoring
    plain = rows.remove_columns(score_columns(rows, known["column"]))
    scored = add_influence(plain, trajectory, model=model, eval_dataset=eval_dataset, **arguments)
    selection = select(scored, **record.provenance["selection"]["arguments"])
    now = (selection.scoring or {}).get("influence", {})
    differences = [
        f"{name} is {now.get(name)}, and {known[name]} was recorded" for name in known if now.get(name) != known[name]
    ]
    run, recorded = (selection.scoring or {}).get("trajectory", {}), record.provenance["training"] or {}
    if run.get("digest") != recorded.get("trajectory_digest"):
        differences.append(
            f"the trajectory has digest {run.get('digest')}, and {recorded.get('trajectory_digest')} was recorded"
        )
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
