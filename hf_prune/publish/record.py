"""What a repository or a directory says about a pruned dataset; somebody else may have written it, so limits apply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import HfApi

from hf_prune._core.id_files import IDS_BYTES, MOST_ROWS, read_ids
from hf_prune._core.reading import JSON_BYTES, one_line
from hf_prune.publish import card, files, limits, rows, scrub, templates
from hf_prune.publish.limits import ReplayError
from hf_prune.publish.provenance import SCHEMA_VERSION, ids_digest, scoring_record
from hf_prune.selection import Certificate, Selection, SelectionConfig
from hf_prune.selection.selection import Applied


@dataclass(frozen=True)
class Record:
    """The provenance of published rows, and which rows of the source they are."""

    provenance: dict[str, Any]
    keep_indices: np.ndarray
    """Positions in the source of the rows that stay, int64 of shape `(kept,)`."""
    repo_id: str
    """A dataset on the Hub, or a directory."""
    commit: str | None
    """Of the repository; None for a directory."""

    @classmethod
    def open(
        cls,
        repo_id: str,
        *,
        config_name: str = "default",
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Record:
        """Reads and checks `provenance.json` and `kept_ids.parquet`.

        Args:
            repo_id (`str`): a dataset on the Hub, or a directory.
            config_name (`str`, *optional*, defaults to `"default"`): the config.
            revision (`str`, *optional*): branch, tag or commit of the repository.
            token (`str` or `bool`, *optional*): defaults to the one that is logged in; with `False` there is none.

        Raises:
            [`ReplayError`]: if a file is missing, damaged, newer than this version, or does not belong to the other.
        """
        commit = None if Path(repo_id).is_dir() else _commit(repo_id, revision, token)
        folder = card.folder(config_name)
        document = _document(
            _read(repo_id, f"{folder}/{files.PROVENANCE}", commit, token, JSON_BYTES),
            f"{repo_id}/{folder}/{files.PROVENANCE}",
        )
        of, recorded = document["source"]["rows"], document["result"]
        if document["config_name"] != config_name:
            raise ReplayError(f"{folder} of {repo_id} describes the config {one_line(document['config_name'])!r}.")
        kept = read_ids(
            limits.READER,
            _read(repo_id, f"{folder}/{files.KEPT_IDS}", commit, token, IDS_BYTES),
            f"{repo_id}/{folder}/{files.KEPT_IDS}",
            rows=of,
            kept=recorded["rows"],
        )
        sorted_once = len(kept) == recorded["rows"] and not (np.diff(kept) <= 0).any()
        if ids_digest(kept) != recorded["kept_ids_digest"] or not sorted_once or kept[0] < 0 or kept[-1] >= of:
            raise ReplayError(
                f"The ids in {folder} of {repo_id} cannot be trusted: push the dataset again.",
                [f"their SHA-256 is {ids_digest(kept)}, and {recorded['kept_ids_digest']} in {files.PROVENANCE}"],
            )
        return cls(document, kept, repo_id, commit)

    def selection(self) -> Selection:
        """Returns the selection that was published: publishing it again makes the same provenance.

        Raises:
            [`ReplayError`]: if the provenance has fields that this version does not know, or values that cannot be.
        """
        recorded = self.provenance["selection"]
        try:
            return Selection(
                keep_indices=self.keep_indices,
                drop_indices=self._drop_indices(),
                certificate=Certificate.from_dict(recorded["certificate"]),
                config=SelectionConfig.from_dict(recorded["arguments"]),
                resolved=recorded["resolved"],
                scoring=scoring_record(self.provenance),
                applied=self.applied,
            )
        except ValueError as error:
            told = one_line(error).rstrip(".")
            raise ReplayError(f"{self.repo_id} was published by another version, or is damaged ({told}).") from error

    @property
    def applied(self) -> Applied | None:
        """How the source was matched with the rows that were scored, if it is not these."""
        applied = self.provenance["selection"].get("applied")
        return None if applied is None else Applied.from_dict(applied)

    def _drop_indices(self) -> np.ndarray:
        dropped = np.ones(self.provenance["source"]["rows"], dtype=bool)
        dropped[self.keep_indices] = False
        return np.flatnonzero(dropped)

    def source_rows(self, token: str | None = None) -> Dataset:
        """Loads the recorded source from the Hub at its recorded commit."""
        origin = self.provenance["source"]
        if origin["id"] is None or scrub.commit(origin["revision"]) is None:
            raise ReplayError("The provenance names no commit on the Hub that the source came from: pass source=.")
        known = (origin["id"], origin["revision"], origin["config_name"], origin["split"] or "train")
        try:
            return rows.of_hub(*known, rows=origin["rows"], token=token)
        except ReplayError as error:
            raise ReplayError(f"{error} If you trust the source, load it yourself and pass source=.") from error

    def published_rows(self, token: str | None = None) -> Dataset:
        """Loads the rows that lie next to the provenance."""
        known = self.provenance
        config_name, split, count = known["config_name"], known["split"], known["result"]["rows"]
        if self.commit is None:
            return rows.of_directory(Path(self.repo_id), config_name, split, rows=count)
        return rows.of_hub(self.repo_id, self.commit, config_name, split, rows=count, token=token)


def _commit(repo_id: str, revision: str | None, token: str | bool | None) -> str:
    """One commit for all files: a branch may move while they are read."""
    if scrub.commit(revision) is not None:
        return str(revision)
    return str(HfApi(token=token).repo_info(repo_id, repo_type="dataset", revision=revision).sha)


def _read(repo_id: str, path: str, commit: str | None, token: str | bool | None, limit: int) -> bytes:
    if commit is None:
        content = limits.READER.content(Path(repo_id) / path, limit)
    else:
        content = limits.from_hub(repo_id, path, commit, token, limit)
    if content is None:
        raise ReplayError(f"{repo_id} was not published by hf_prune: it has no {path}.")
    return content


def _document(content: bytes, where: str) -> dict[str, Any]:
    document = limits.READER.mapping(content, where)
    version = document.get("schema_version")
    if type(version) is not int:
        raise ReplayError(f"{where} is not a provenance file of hf_prune.")
    if version > SCHEMA_VERSION:
        raise ReplayError(f"{where} has schema version {version}, newer than {SCHEMA_VERSION}: upgrade hf_prune.")
    limits.check_schema(document, templates.schema(), where)
    rows, kept = document["source"]["rows"], document["result"]["rows"]
    certificate = document["selection"]["certificate"]
    applied = document["selection"].get("applied") or {"unseen": 0, "unseen_kept": False}
    n, stay = certificate["n"] + applied["unseen"], certificate["kept"] + applied["unseen"] * applied["unseen_kept"]
    if (n, stay) != (rows, kept) or kept > rows:
        raise ReplayError(f"{where} contradicts itself: {kept} of {rows} rows are not those of its certificate.")
    if rows > MOST_ROWS:
        raise ReplayError(f"{where} is about {rows:,} rows, and at most {MOST_ROWS:,} are read.")
    return document
