"""A selection: which rows stay, which go, and what is predicted of it; saved as JSON and Parquet."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from hf_prune._core.config import SelectionConfig
from hf_prune._core.id_files import IDS_BYTES, MOST_ROWS, read_ids
from hf_prune._core.io import together, write_together, writing
from hf_prune._core.notebook import selection_html
from hf_prune._core.reading import JSON_BYTES, Count, Reader, one_line, typed
from hf_prune._core.records import ScoringRecord
from hf_prune.selection.certificate import Certificate
from hf_prune.selection.identity import RowIdentity

if TYPE_CHECKING:
    from hf_prune.selection.pruned import PrunedDataset

SCHEMA_VERSION = 1
_READER = Reader(ValueError, "save the selection again")
SELECTION_FILE = "selection.json"
ID_FILES = {"keep_indices": "kept_ids.parquet", "drop_indices": "dropped_ids.parquet"}
IDENTITY_FILE = "rows.parquet"


@dataclass(frozen=True)
class Applied:
    """
    How a selection among scored rows became one among raw rows.

    Args:
        columns (`tuple[str, ...]`): The columns that tell which row is which.
        unseen (`int`): Raw rows that were not among the scored ones.
        unseen_kept (`bool`): Whether these are kept.
    """

    columns: tuple[str, ...]
    unseen: Count
    unseen_kept: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"columns": list(self.columns)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Applied:
        """
        Reads what `to_dict` wrote.

        Raises:
            `ValueError`: for a field that is missing, unknown or of another type.
        """
        return typed(values, cls)


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
        applied (`Applied`, *optional*): How the source was matched, if it is not the dataset that was scored.
        identity (`RowIdentity`, *optional*): What `apply` knows the scored rows by.
        ids_digest (`str`, *optional*): SHA-256 of the kept rows, by which it is noticed if other rows are put in
            their place under the same certificate.
    """

    keep_indices: np.ndarray
    drop_indices: np.ndarray
    certificate: Certificate
    config: SelectionConfig
    resolved: dict[str, Any]
    scoring: ScoringRecord | None = None
    applied: Applied | None = None
    identity: RowIdentity | None = field(default=None, repr=False)
    ids_digest: str | None = None

    def __post_init__(self) -> None:
        for name in ID_FILES:
            ids = np.array(getattr(self, name), dtype=np.int64)
            ids.setflags(write=False)
            object.__setattr__(self, name, ids)
            if ids.ndim != 1 or (np.diff(ids) <= 0).any():
                raise ValueError(f"{name} has to be a sorted list of distinct rows: select again.")
        both = np.sort(np.concatenate([self.keep_indices, self.drop_indices]))
        unseen, unseen_kept = (0, 0) if self.applied is None else (self.applied.unseen, self.applied.unseen_kept)
        rows, kept = self.certificate.n + unseen, self.certificate.kept + unseen * unseen_kept
        if not np.array_equal(both, np.arange(rows)) or len(self.keep_indices) != kept:
            raise ValueError(
                f"The kept and dropped rows are not {kept} and the other rows of the {rows} that the certificate is "
                "about: select again."
            )

        digest = hashlib.sha256(self.keep_indices.astype("<i8").tobytes()).hexdigest()
        if self.ids_digest not in (None, digest):
            raise ValueError("The kept rows are not those that the certificate is about: select again.")
        object.__setattr__(self, "ids_digest", digest)

    @property
    def n_rows(self) -> int:
        """Rows of the source dataset."""
        return len(self.keep_indices) + len(self.drop_indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return np.array_equal(self.keep_indices, other.keep_indices) and (
            (self.certificate, self.config, self.resolved, self.scoring, self.applied)
            == (other.certificate, other.config, other.resolved, other.scoring, other.applied)
        )

    def __hash__(self) -> int:
        return hash(self.keep_indices.tobytes())

    def __repr__(self) -> str:
        return f"Selection(kept {len(self.keep_indices):,} of {self.n_rows:,} rows, {self.certificate.method})"

    def _repr_html_(self) -> str:
        return selection_html(self)

    def apply(self, rows: Dataset, *, unseen: str | None = None, on: str | list[str] | None = None) -> PrunedDataset:
        """
        Takes the kept rows of the dataset that was there before it was prepared for the Trainer: texts instead of
        tokens, in their own order, without scores.

        A raw row is known by its contents: by all columns that preparation left as they were, but for one ending,
        such as an end-of-sequence token, that all values of a column of text may have got. Where nothing was left,
        number the raw rows with [`with_example_ids`] before. Positions never count, so rows may have been shuffled or
        dropped in between; rows that agree in all that they hold stand for each other.

        Args:
            rows (`datasets.Dataset`):
                The raw rows.
            unseen (`str`, *optional*):
                What becomes of raw rows that were not scored, such as those that were too long: `"drop"` or `"keep"`.
                Has to be said where there are any; a note in the certificate says how many they are.
            on (`str` or `list[str]`, *optional*):
                The columns that identify a row, where those that are shared and unchanged do not.

        Returns:
            [`PrunedDataset`]: The kept raw rows; the figures of its certificate are those of the scored rows.

        Raises:
            `ValueError`: If rows cannot be matched one to one, or `unseen` has to be said.

        Example:

        ```py
        >>> pruned = prune(scored, keep=0.5).selection.apply(raw)
        >>> pruned.push_to_hub("me/chats-half")
        ```
        """
        from hf_prune.selection.raw import apply

        return apply(self, rows, unseen, on)

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Writes `selection.json`, `kept_ids.parquet` and `dropped_ids.parquet` into a directory, and `rows.parquet` if
        the selection knows its rows.

        What a killed process leaves is the old selection or the new one, whole.

        Args:
            path (`str` or `os.PathLike`): The directory; it is made if it does not exist.
        """
        directory = Path(path)
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"{directory} is a file: pass a directory to save the selection in.")
        tables = {file: pa.table({"id": pa.array(getattr(self, name))}) for name, file in ID_FILES.items()}
        if self.identity is not None:
            tables[IDENTITY_FILE] = self.identity.to_table()
        contents = {}
        for file, table in tables.items():
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            contents[file] = sink.getvalue().to_pybytes()
        head = {
            "schema_version": SCHEMA_VERSION,
            "arguments": self.config.to_dict(),
            "resolved": self.resolved,
            "certificate": self.certificate.to_dict(),
            "scoring": None if self.scoring is None else self.scoring.to_dict(),
            "sha256": {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
        }
        if self.applied is not None:
            head["applied"] = self.applied.to_dict()
        contents[SELECTION_FILE] = (json.dumps(head, indent=2) + "\n").encode()
        with writing("The selection", directory):
            directory.mkdir(parents=True, exist_ok=True)
            write_together(directory, contents)

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
        directory = together(Path(path))
        file, head = directory / SELECTION_FILE, _read_head(directory)
        try:
            certificate = Certificate.from_dict(head.certificate)
            applied = None if head.applied is None else Applied.from_dict(head.applied)
            config = SelectionConfig.from_dict(head.arguments)
            scoring = None if head.scoring is None else ScoringRecord.from_dict(head.scoring)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({one_line(error).rstrip('.')}): {_READER.mend}.") from error
        unseen, unseen_kept = (0, False) if applied is None else (applied.unseen, applied.unseen_kept)
        n, kept = certificate.n + unseen, certificate.kept + unseen * unseen_kept
        if n > MOST_ROWS:
            raise ValueError(f"{file} is about {n:,} rows, and at most {MOST_ROWS:,} are read: {_READER.mend}.")
        keep, drop = (
            read_ids(_READER, _checked(directory / name, head.sha256), directory / name, count, count)
            for name, count in zip(ID_FILES.values(), (kept, n - kept), strict=True)
        )
        identity, known = None, directory / IDENTITY_FILE
        if IDENTITY_FILE in head.sha256:
            identity = RowIdentity.read(_READER, _checked(known, head.sha256), known, certificate.n)
        try:
            return cls(keep, drop, certificate, config, head.resolved, scoring, applied, identity)
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({one_line(error).rstrip('.')}): {_READER.mend}.") from error


@dataclass(frozen=True)
class SelectionHead:
    """What `selection.json` holds."""

    schema_version: int
    arguments: dict[str, Any]
    resolved: dict[str, Any]
    certificate: dict[str, Any]
    scoring: dict[str, Any] | None
    sha256: dict[str, str]
    applied: dict[str, Any] | None = None


def _read_bytes(file: Path, limit: int) -> bytes:
    content = _READER.content(file, limit)
    if content is None:
        raise FileNotFoundError(
            f"There is no {file.name} in {file.parent}: pass the directory that `Selection.save` wrote."
        )
    return content


def _read_head(directory: Path) -> SelectionHead:
    file = directory / SELECTION_FILE
    values = _READER.value(_read_bytes(file, JSON_BYTES), file)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if type(version) is not int:
        raise ValueError(f"{file} is not a selection: pass the directory that `Selection.save` wrote.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{file} is of schema version {version}, newer than {SCHEMA_VERSION}, which this version reads: upgrade "
            "hf-prune."
        )
    return _READER.typed(values, SelectionHead, file)


def _checked(file: Path, digests: Mapping[str, str]) -> bytes:
    content = _read_bytes(file, IDS_BYTES)
    if hashlib.sha256(content).hexdigest() != digests.get(file.name):
        raise ValueError(
            f"{file} is damaged or belongs to another selection (its SHA-256 differs from the one in "
            f"{SELECTION_FILE}): save the selection again."
        )
    return content
