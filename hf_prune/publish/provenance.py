"""provenance.json: what is needed to rebuild the same subset, and to trust it.

The whole is checked for secrets and local paths before it gets out.
What is not known is null, which the card spells as "unknown".
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.digest import column_digests, combine
from hf_prune._core.records import LIBRARIES, Observed, ScoringRecord
from hf_prune.publish import scrub, source
from hf_prune.selection.pruned import PrunedDataset

SCHEMA_VERSION = 1

_MEASURED = ("recorded_share", "held_out_curvature", "trained_columns", "other_columns", "candidates", "doubts")
"""Fields of a [`ScoringRecord`] other than its config and its run."""
OWN_NAMES = (
    "columns",
    "trained_columns",
    "other_columns",
    "score_columns",
    "class_column",
    "classes_before",
    "classes_after",
    "balance",
    "column",
)
"""Fields that hold names of the dataset itself, which are published with its rows and may look like anything."""


def build(
    pruned: Any,
    *,
    config_name: str = "default",
    split: str | None = None,
    source_id: str | None = None,
    license: str | None = None,
    observed: Mapping[str, Any] | None = None,
    created: str | None = None,
) -> dict[str, Any]:
    """Returns the provenance of a pruned dataset, valid against `model_cards/provenance.schema.json`.

    Args:
        pruned (`PrunedDataset`): what [`~hf_prune.prune`] returned.
        config_name (`str`, *optional*, defaults to `"default"`): the config that it is published as.
        split (`str`, *optional*): the split that it is published as; defaults to its own, or `"train"`.
        source_id (`str`, *optional*): `"org/name"` or `"org/name@commit"` of the dataset that was pruned. By default
            what `load_dataset` left is read; a dataset that was never on the Hub has none.
        license (`str`, *optional*): identifier of the source's licence, where its card is not at hand.
        observed (`Mapping[str, Any]`, *optional*): what `verify` measured, `Verification.observed()` or fields of
            [`~hf_prune._core.records.Observed`]: those that are missing are unknown, others are refused.
        created (`str`, *optional*): ISO 8601 time in UTC; defaults to now.

    Returns:
        `dict[str, Any]`: values that JSON can hold.

    Raises:
        `ValueError`: if a field holds a path of this machine, a token or a secret, or `observed` an unknown field.
    """
    if not isinstance(pruned, PrunedDataset):
        raise TypeError(
            f"Only what prune returned has a provenance, not a {type(pruned).__name__}: map, filter and select make "
            "other rows, so do them before add_influence."
        )
    selection = pruned.selection
    _check_rows(pruned)
    split = split or (str(pruned.split) if pruned.split is not None else "train")
    scoring = selection.scoring
    document = {
        "schema_version": SCHEMA_VERSION,
        "created": created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tool": {"name": "hf_prune", "version": _version("hf-prune")},
        "config_name": config_name,
        "split": split,
        "source": _source(pruned, source_id, license),
        "result": _result(pruned),
        "selection": {
            "arguments": scrub.plain(selection.config.to_dict()),
            "resolved": scrub.plain(selection.resolved),
            "certificate": scrub.plain(selection.certificate.to_dict()),
        }
        | ({} if selection.applied is None else {"applied": selection.applied.to_dict()}),
        "influence": None if scoring is None else _influence(scoring),
        "training": None if scoring is None or scoring.run is None else scoring.run.to_dict(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "observed": observe(observed),
    }
    scrub.check(document, unread=OWN_NAMES)
    return document


def _check_rows(pruned: PrunedDataset) -> None:
    """The rows must be those of the source that the selection keeps, whatever became of them since."""
    shared = [name for name in pruned.column_names if name in pruned.source.column_names]
    kept = pruned.source.select(pruned.selection.keep_indices.tolist())
    found, due = column_digests(pruned, shared), column_digests(kept, shared)
    wrong = [name for name in shared if found[name] != due[name]]
    if len(pruned) != len(kept) or wrong:
        raise ValueError(
            f"The rows are not those that the selection keeps (column {(wrong or ['?'])[0]!r} differs): something "
            "replaced them, so prune again."
        )


def ids_digest(ids: np.ndarray) -> str:
    """SHA-256 of ids as little-endian 64-bit integers."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()


def _source(pruned: Any, source_id: str | None, license: str | None) -> dict[str, Any]:
    found = source.find(pruned, source_id)
    return {
        "id": found.id,
        "revision": found.revision,
        "config_name": found.config_name,
        "split": None if pruned.split is None else str(pruned.split),
        "license": {"license": license} if license else found.license,
        "rows": pruned.selection.n_rows,
        "split_rows": found.rows,
        "content_digest": pruned.source_digest,
        "columns": pruned.source_columns,
    }


def _result(pruned: Any) -> dict[str, Any]:
    scores = InfluenceColumns(pruned.selection.config.column).among(pruned.column_names)
    columns = column_digests(pruned, [name for name in pruned.column_names if name not in scores])
    return {
        "rows": len(pruned),
        "content_digest": combine(len(pruned), columns),
        "columns": columns,
        "score_columns": scores,
        "kept_ids_digest": ids_digest(pruned.selection.keep_indices),
    }


def scoring_record(document: Mapping[str, Any]) -> ScoringRecord | None:
    """
    Returns how the columns were made as far as a provenance says it: the inverse of what `build` makes of a record.

    Raises:
        `ValueError`: if the provenance has fields that this version does not know.
    """
    if document["influence"] is None:
        return None
    config = dict(document["influence"])
    measured = {name: config.pop(name) for name in _MEASURED if name in config}
    return ScoringRecord.from_dict({"config": config, "run": document["training"], **measured})


def _influence(scoring: ScoringRecord) -> dict[str, Any]:
    return scrub.plain(scoring.config.to_dict() | {name: getattr(scoring, name) for name in _MEASURED})


def observe(observed: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """
    Returns what retraining showed, with all its fields.

    Raises:
        `ValueError`: if it names no metric, or a field that [`Observed`] does not have.
    """
    if observed is None:
        return None
    known = [field.name for field in fields(Observed)]
    unknown = sorted(set(observed) - set(known))
    if unknown:
        raise ValueError(f"observed has no field {unknown[0]!r}: its fields are {', '.join(known)}.")
    return scrub.plain(Observed(**{"metric": None} | dict(observed)).to_dict())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
