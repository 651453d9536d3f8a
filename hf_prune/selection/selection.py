"""A selection: which rows stay, which go, and what is predicted of it; saved as JSON and Parquet."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_prune._core.config import SelectionConfig
from hf_prune._core.io import write_bytes
from hf_prune._core.notebook import selection_html
from hf_prune._core.records import ScoringRecord
from hf_prune.selection.certificate import Certificate

SCHEMA_VERSION = 1
SELECTION_FILE = "selection.json"
ID_FILES = {"keep_indices": "kept_ids.parquet", "drop_indices": "dropped_ids.parquet"}


@dataclass(frozen=True, eq=False)
class Selection:
    """
    What [`select`] returns: the rows of a pruned dataset, by their positions in the source dataset.

    Args:
        keep_indices (`np.ndarray`): Rows that stay, sorted, int64 of shape `(kept,)`.
        drop_indices (`np.ndarray`): Rows that go, sorted, int64 of shape `(n - kept,)`.
        certificate (`Certificate`): What is predicted of the subset, next to random subsets.
        config (`SelectionConfig`): What was asked for.
        resolved (`dict`): Values that were left to the call, such as the number of rows and the column of classes.
        scoring (`ScoringRecord`, *optional*): How the influence columns were made.
    """

    keep_indices: np.ndarray
    drop_indices: np.ndarray
    certificate: Certificate
    config: SelectionConfig
    resolved: dict[str, Any]
    scoring: ScoringRecord | None = None

    def __post_init__(self) -> None:
        for name in ID_FILES:
            ids = np.array(getattr(self, name), dtype=np.int64)
            ids.setflags(write=False)
            object.__setattr__(self, name, ids)
            if ids.ndim != 1 or (np.diff(ids) <= 0).any():
                raise ValueError(f"{name} has to be a sorted list of distinct rows: select again.")
        both = np.sort(np.concatenate([self.keep_indices, self.drop_indices]))
        if not np.array_equal(both, np.arange(self.certificate.n)) or len(self.keep_indices) != self.certificate.kept:
            raise ValueError(
                f"The kept and dropped rows are not {self.certificate.kept} and the other rows of the "
                f"{self.certificate.n} that the certificate is about: select again."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return np.array_equal(self.keep_indices, other.keep_indices) and (
            (self.certificate, self.config, self.resolved, self.scoring)
            == (other.certificate, other.config, other.resolved, other.scoring)
        )

    def __hash__(self) -> int:
        return hash(self.keep_indices.tobytes())

    def __repr__(self) -> str:
        return f"Selection(kept {self.certificate.kept:,} of {self.certificate.n:,} rows, {self.certificate.method})"

    def _repr_html_(self) -> str:
        return selection_html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Writes `selection.json`, `kept_ids.parquet` and `dropped_ids.parquet` into a directory.

        Each file is written next to its place and then moved there, `selection.json` with the digests of the others
        last: what a killed process leaves is either the old selection, the new one, or an error when it is loaded.

        Args:
            path (`str` or `os.PathLike`): The directory; it is made if it does not exist.
        """
        directory = Path(path)
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"{directory} is a file: pass a directory to save the selection in.")
        directory.mkdir(parents=True, exist_ok=True)
        digests = {}
        for name, file in ID_FILES.items():
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"id": pa.array(getattr(self, name))}), sink)
            content = sink.getvalue().to_pybytes()
            digests[file] = hashlib.sha256(content).hexdigest()
            write_bytes(directory / file, content)
        head = {
            "schema_version": SCHEMA_VERSION,
            "arguments": self.config.to_dict(),
            "resolved": self.resolved,
            "certificate": self.certificate.to_dict(),
            "scoring": None if self.scoring is None else self.scoring.to_dict(),
            "sha256": digests,
        }
        write_bytes(directory / SELECTION_FILE, (json.dumps(head, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """
        Reads what `save` wrote, and checks it.

        Args:
            path (`str` or `os.PathLike`): The directory.

        Raises:
            `FileNotFoundError`: If a file is missing.
            `ValueError`: If a file is damaged, does not belong to the others, or is of a newer version.
        """
        directory = Path(path)
        head = _read_head(directory)
        ids = {name: _read_ids(directory / file, head["sha256"].get(file)) for name, file in ID_FILES.items()}
        try:
            return cls(
                **ids,
                certificate=Certificate.from_dict(head["certificate"]),
                config=SelectionConfig.from_dict(head["arguments"]),
                resolved=head["resolved"],
                scoring=None if head["scoring"] is None else ScoringRecord.from_dict(head["scoring"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            file = directory / SELECTION_FILE
            raise ValueError(f"{file} is damaged ({error}): save the selection again.") from error


def _read_bytes(file: Path) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file.name} in {file.parent}: pass the directory that `Selection.save` wrote."
        )
    return file.read_bytes()


def _read_head(directory: Path) -> dict[str, Any]:
    file = directory / SELECTION_FILE
    try:
        head = json.loads(_read_bytes(file))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): save the selection again.") from error
    version = head.get("schema_version") if isinstance(head, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{file} is not a selection: pass the directory that `Selection.save` wrote.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{file} is of schema version {version}, newer than {SCHEMA_VERSION}, which this version reads: upgrade "
            "hf-prune."
        )
    missing = {"arguments", "certificate", "resolved", "scoring", "sha256"} - set(head)
    if missing or not isinstance(head["sha256"], dict):
        raise ValueError(f"{file} lacks {sorted(missing) or ['sha256']}: save the selection again.")
    return head


def _read_ids(file: Path, digest: str | None) -> np.ndarray:
    content = _read_bytes(file)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{file} is damaged or belongs to another selection (its SHA-256 differs from the one in "
            f"{SELECTION_FILE}): save the selection again."
        )
    try:
        return pq.read_table(pa.BufferReader(content))["id"].to_numpy()
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{file} is not a Parquet file of ids ({error}): save the selection again.") from error
