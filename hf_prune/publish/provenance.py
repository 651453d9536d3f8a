"""provenance.json: what is needed to make the same subset again, and to trust it.

Every field is taken from an allow-list, and the whole is checked for secrets and local paths before it gets out.
What is not known is null, which the card spells as "unknown".
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from datasets import Dataset

from hf_prune._core.digest import column_digests
from hf_prune.publish import scrub, source
from hf_prune.selection.pruned import PrunedDataset

SCHEMA_VERSION = 1

_LIBRARIES = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "numpy",
    "peft",
    "pyarrow",
    "scipy",
    "torch",
    "transformers",
    "trl",
)
_ARGUMENTS = (
    "keep",
    "epsilon",
    "method",
    "difficulty",
    "cost",
    "harmful",
    "centred",
    "features",
    "balance",
    "buckets",
    "column",
    "seed",
)
_RESOLVED = ("kept", "balance", "difficulty", "buckets")
_INFLUENCE = ("version", "engine", "mode", "space", "curvature", "directions", "seed", "column", "eval_digest")
_GROUP = (
    "lr",
    "initial_lr",
    "betas",
    "eps",
    "weight_decay",
    "momentum",
    "dampening",
    "nesterov",
    "amsgrad",
    "maximize",
    "decoupled_weight_decay",
    "fused",
    "foreach",
    "capturable",
    "differentiable",
)
_SCHEDULE = ("name", "lr_scheduler_type", "learning_rate", "warmup_steps", "warmup_ratio", "lr_scheduler_kwargs")
_RUN = (
    "world_size",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_grad_norm",
    "precision",
    "total_steps",
    "steps_per_epoch",
    "last_step",
    "window_start",
    "snapshot_dtype",
    "updates_before_start",
    "loss",
    "complete",
)
_OBSERVED = (
    "metric",
    "full",
    "pruned",
    "random",
    "gap",
    "random_gap",
    "interval",
    "seeds",
    "protocol",
    "greater_is_better",
    "loss_change",
    "loss_interval",
    "random_loss_change",
    "seconds_full",
    "seconds_pruned",
    "seconds_random",
)
OWN_NAMES = ("columns", "score_columns", "class_column", "classes_before", "classes_after", "balance", "column")
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
        observed (`Mapping[str, Any]`, *optional*): what `verify` measured: `metric`, `full`, `pruned`, `random`,
            `gap`, `random_gap`, `interval`, `seeds`, `protocol`, `greater_is_better`, `seconds_full`, `seconds_pruned`
            and `seconds_random`; fields that are missing are unknown, others are refused.
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
    split = split or (str(pruned.split) if pruned.split is not None else "train")
    scoring: Mapping[str, Any] = selection.scoring or {}
    document = {
        "schema_version": SCHEMA_VERSION,
        "created": created or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tool": {"name": "hf_prune", "version": _version("hf-prune")},
        "config_name": config_name,
        "split": split,
        "source": _source(pruned, source_id, license),
        "result": _result(pruned),
        "selection": {
            "arguments": dict.fromkeys(_ARGUMENTS) | scrub.pick(selection.arguments, _ARGUMENTS),
            "resolved": dict.fromkeys(_RESOLVED) | scrub.pick(selection.arguments.get("resolved"), _RESOLVED),
            "certificate": scrub.plain(selection.certificate.to_dict()),
        },
        "influence": scrub.pick(scoring["influence"], _INFLUENCE) if scoring.get("influence") else None,
        "training": _training(scoring["trajectory"]) if scoring.get("trajectory") else None,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "observed": observe(observed),
    }
    scrub.check(document, unread=OWN_NAMES)
    return document


def combine(rows: int, digests: Mapping[str, str]) -> str:
    """`content_digest` from column digests that are there already."""
    return hashlib.sha256(json.dumps([rows, sorted(digests.items())]).encode()).hexdigest()


def ids_digest(ids: np.ndarray) -> str:
    """SHA-256 of ids as little-endian 64-bit integers."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()


def score_columns(dataset: Dataset, column: str) -> list[str]:
    """The influence columns that a dataset has, `column` being the name of the first."""
    return [name for name in (column, f"{column}_norm", f"{column}_eval_loss") if name in dataset.column_names]


def _source(pruned: Any, source_id: str | None, license: str | None) -> dict[str, Any]:
    found = source.find(pruned, source_id)
    return {
        "id": found.id,
        "revision": found.revision,
        "config_name": found.config_name,
        "split": None if pruned.split is None else str(pruned.split),
        "license": {"license": license} if license else found.license,
        "rows": pruned.selection.certificate.n,
        "content_digest": pruned.source_digest,
        "columns": pruned.source_columns,
    }


def _result(pruned: Any) -> dict[str, Any]:
    scores = score_columns(pruned, pruned.selection.arguments["column"])
    columns = column_digests(pruned, [name for name in pruned.column_names if name not in scores])
    return {
        "rows": len(pruned),
        "content_digest": combine(len(pruned), columns),
        "columns": columns,
        "score_columns": scores,
        "kept_ids_digest": ids_digest(pruned.selection.keep_indices),
    }


def _training(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    manifest: Mapping[str, Any] = trajectory.get("manifest") or {}
    model = manifest.get("model") or {}
    optimizer = manifest.get("optimizer") or {}
    revision = scrub.commit(model.get("revision"))
    return {
        "trajectory_digest": trajectory.get("digest"),
        "model": {
            "class": scrub.plain(model.get("class")),
            "id": scrub.hub_id(model.get("name_or_path")),
            "revision": revision,
            "parameters": _size(manifest.get("parameters")),
        },
        "optimizer": {
            "name": scrub.plain(optimizer.get("name")),
            "groups": [scrub.pick(group, _GROUP) for group in optimizer.get("groups") or []],
        },
        "schedule": scrub.pick(manifest.get("schedule"), _SCHEDULE) or None,
        "seeds": scrub.pick(manifest.get("seeds"), ("seed", "data_seed")),
        "run": dict.fromkeys(_RUN) | scrub.pick(manifest, _RUN),
        "versions": scrub.pick(manifest.get("versions"), ("python", *_LIBRARIES)),
    }


def _size(parameters: Any) -> int | None:
    return sum(int(np.prod(entry["shape"], dtype=np.int64)) for entry in parameters) if parameters else None


def observe(observed: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if observed is None:
        return None
    unknown = sorted(set(observed) - set(_OBSERVED))
    if unknown:
        raise ValueError(f"observed has no field {unknown[0]!r}: its fields are {', '.join(_OBSERVED)}.")
    if not isinstance(observed.get("metric"), str):
        raise ValueError("observed names no metric: pass for example observed={'metric': 'accuracy', 'gap': 0.01}.")
    return dict.fromkeys(_OBSERVED) | scrub.pick(observed, _OBSERVED)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
