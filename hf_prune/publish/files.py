"""The files that accompany the rows: provenance.json, kept_ids.parquet, provenance.jsonld and the card."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.io import write_bytes
from hf_prune.publish import card, jsonld, limits, provenance

PROVENANCE, JSONLD, KEPT_IDS, CARD = "provenance.json", "provenance.jsonld", "kept_ids.parquet", "README.md"


def write(
    pruned: Any,
    directory: str | os.PathLike[str],
    *,
    include_scores: bool = False,
    include_dropped: bool = False,
    storage_options: dict[str, Any] | None = None,
    **known: Any,
) -> dict[str, Any]:
    """Writes `hf_prune/provenance.json`, `kept_ids.parquet`, `provenance.jsonld` and the card into a directory.

    Each file is there whole or not at all. A README.md that is there already is merged, see
    [`~hf_prune.publish.card.render`]; writing twice changes nothing more.

    Args:
        pruned (`PrunedDataset`): what [`~hf_prune.prune`] returned.
        directory (`str` or `os.PathLike`): a directory, or a URL that fsspec understands.
        include_scores (`bool`, *optional*, defaults to `False`): put the influence columns next to the ids.
        include_dropped (`bool`, *optional*, defaults to `False`): list the dropped rows too, with a column `kept`.
        storage_options (`dict[str, Any]`, *optional*): for the file system of a URL.
        **known: what [`~hf_prune.publish.provenance.build`] takes: `config_name`, `split`, `source_id`, `license`,
            `observed`.

    Returns:
        `dict[str, Any]`: the provenance that was written.
    """
    fs, root = url_to_fs(os.fspath(directory), **(storage_options or {}))
    document, contents = prepare(
        pruned, fs, root, include_scores=include_scores, include_dropped=include_dropped, **known
    )
    put(fs, root, contents)
    return document


def prepare(
    pruned: Any, fs: Any, root: str, *, include_scores: bool = False, include_dropped: bool = False, **known: Any
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns the provenance and the content of all files, the card merged into the one in `root`; writes nothing.

    Raises:
        `ValueError`: if the card that is there is not YAML and UTF-8.
    """
    document = provenance.build(pruned, **known)
    folder = card.folder(document["config_name"])
    document = settle(document, _get(fs, posixpath.join(root, folder, PROVENANCE)))
    existing = text_of_card(_get(fs, posixpath.join(root, CARD)))
    merged = card.render(document, existing=existing).encode()
    contents = make(pruned, document, include_scores=include_scores, include_dropped=include_dropped)
    return document, contents | {CARD: merged}


def put(fs: Any, root: str, contents: Mapping[str, bytes]) -> None:
    """Writes files into a directory, each whole or not at all."""
    for name, content in contents.items():
        _put(fs, posixpath.join(root, name), content)


def make(
    pruned: Any,
    document: Mapping[str, Any],
    *,
    repo_id: str | None = None,
    data_dir: str | None = None,
    include_scores: bool = False,
    include_dropped: bool = False,
) -> dict[str, bytes]:
    """Returns the content of the files by their path in the repository, without the card."""
    folder = card.folder(document["config_name"])
    ids = _parquet(_id_table(pruned, document, include_scores, include_dropped))
    known = _json(document)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in ((KEPT_IDS, ids), (PROVENANCE, known))}
    linked = jsonld.build(document, pruned.features, digests, repo_id=repo_id, folder=folder, data_dir=data_dir)
    return {f"{folder}/{KEPT_IDS}": ids, f"{folder}/{PROVENANCE}": known, f"{folder}/{JSONLD}": _json(linked)}


def settle(document: dict[str, Any], previous: bytes | None) -> dict[str, Any]:
    """Keeps the date of a previous document that says the same, so that publishing twice changes nothing."""
    old = _read(previous)
    same = old | {"created": None} == document | {"created": None}
    return document | {"created": old["created"]} if same and isinstance(old.get("created"), str) else document


def split_of(previous: bytes | None) -> str | None:
    """The split that a previous provenance.json describes, None where there is none that can be read."""
    split = _read(previous).get("split")
    return split if isinstance(split, str) else None


def _read(previous: bytes | None) -> dict[str, Any]:
    try:
        return {} if previous is None else limits.READER.mapping(previous, PROVENANCE)
    except limits.ReplayError:
        return {}  # whatever it was, it is replaced by what is known now


def _id_table(pruned: Any, document: Mapping[str, Any], include_scores: bool, include_dropped: bool) -> pa.Table:
    kept = pruned.selection.keep_indices
    ids = np.arange(document["source"]["rows"], dtype=np.int64) if include_dropped else kept
    columns: dict[str, Any] = {"id": pa.array(ids)}
    if include_dropped:
        columns["kept"] = pa.array(np.isin(ids, kept, assume_unique=True))
    if include_scores:
        scored = pruned.source
        names = InfluenceColumns(pruned.selection.config.column).among(scored.column_names)
        rows = scored.select_columns(names).select(ids.tolist()).with_format("arrow")[:]
        columns |= {name: rows[name] for name in names}
    # without the metadata of pandas or `datasets`: equal ids make equal bytes
    return pa.table(columns).replace_schema_metadata(None)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def text_of_card(content: bytes | None) -> str | None:
    """Returns the text of the card that is there.

    Raises:
        `ValueError`: if it is not UTF-8.
    """
    try:
        return None if content is None else limits.utf8(content, CARD)
    except limits.ReplayError as error:
        raise ValueError(f"{error} Save it as UTF-8, then push or save again.") from error


def _get(fs: Any, path: str) -> bytes | None:
    return bytes(fs.cat_file(path)) if fs.exists(path) else None


def _put(fs: Any, path: str, content: bytes) -> None:
    if not isinstance(fs, LocalFileSystem):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        fs.pipe_file(path, content)  # object stores put an object whole or not at all
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content)
