"""A report's parts from what the other packages made: a selection, its rows, its provenance, verifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset

from hf_prune._core.config import SelectionConfig
from hf_prune.publish.card import observed_verdict
from hf_prune.report.data import Gap
from hf_prune.report.examples import ScoredRows, interesting_rows, listed_rows, pairs_of
from hf_prune.report.plain_language import plain_words
from hf_prune.report.plots import class_counts
from hf_prune.report.reasons import reasons
from hf_prune.selection import Selection
from hf_prune.verification import Verification


def selection_parts(selection: Selection, rows: Dataset | None = None) -> dict[str, Any]:
    """
    The fields of [`ReportData`] that come from a selection.

    Args:
        selection (`Selection`): The selection.
        rows (`Dataset`, *optional*): The whole scored dataset, or the kept rows where no others are at hand; none are
            shown without.
    """
    certificate = selection.certificate
    parts = {
        "rate": round(1 - len(selection.keep_indices) / selection.n_rows, 4),
        "class_column": certificate.class_column,
        "classes": class_counts(certificate),
        "words": plain_words(certificate),
        "evidence": certificate.evidence,
        "certificate": certificate.explain(),
    }
    return parts if rows is None else parts | _row_parts(selection, rows)


def _row_parts(selection: Selection, rows: Dataset) -> dict[str, Any]:
    """The fields that show rows."""
    n, left = selection.n_rows, len(selection.keep_indices)
    whole = len(rows) == n
    if not whole and len(rows) != left:
        raise ValueError(
            f"The dataset has {len(rows)} rows, and the selection keeps {left} of {n}: pass the rows that it was made "
            "from, or the kept ones."
        )
    kept = np.ones(len(rows), dtype=bool)
    ids = np.arange(len(rows)) if whole else selection.keep_indices
    if whole:
        kept[selection.drop_indices] = False
    scored = ScoredRows(rows, ids, kept, selection.config.column)
    norm = scored.numbers("norm")
    if whole and norm is not None:
        dropped = scored.shown[~kept[scored.shown]]
        scored = replace(scored, reasons=reasons(rows, selection, dropped, scored.label))
    return {
        "kept_norms": None if norm is None else norm[kept],
        "dropped_norms": norm[~kept] if norm is not None and whole else None,
        "examples": interesting_rows(scored),
        "pairs": pairs_of(scored),
        "listed": listed_rows(scored),
        "n_rows": len(rows),
    }


def gaps(rate: float, selection: Selection, verification: Verification) -> list[Gap]:
    """Predicted and observed change of the held-out loss; empty if one of them is not known."""
    return Gap.of(rate, selection.certificate.predicted_eval_loss_change, verification)


def observed(provenance: Mapping[str, Any]) -> str | None:
    """What retraining showed before the rows were published, in one sentence; None if there was none."""
    seen = provenance["observed"]
    if seen is None:
        return None
    told = observed_verdict(seen)
    return told or "The model was retrained on these rows; whether random ones would do as well is not known."


def how_it_was_made(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts of a provenance that a reader wants to see, in words; what is not known is left out."""
    selection, training = provenance["selection"], provenance["training"] or {}
    run, model = training.get("run") or {}, training.get("model") or {}
    source, influence = provenance["source"], provenance["influence"] or {}
    asked = ("mode", "space", "curvature", "directions", "seed", "until")
    lines: Sequence[tuple[str, Any]] = (
        ("source", _join(source, ("id", "revision", "config_name", "split"))),
        ("rows", f"{provenance['result']['rows']:,} of {source['rows']:,}"),
        ("model", _join(model, ("class", "id", "revision"))),
        ("recorded parameters", f"{model['parameters']:,}" if model.get("parameters") else None),
        (
            "training",
            _join(run, ("total_steps", "last_step", "steps_per_epoch", "world_size", "precision"), named=True),
        ),
        ("optimizer", (training.get("optimizer") or {}).get("name")),
        ("influence", _join(influence, asked, named=True)),
        ("selection", _join(_changed(selection["arguments"]), tuple(selection["arguments"]), named=True)),
        ("chosen for it", _join(_plain(selection["resolved"]), tuple(selection["resolved"]), named=True)),
        ("trajectory", training.get("trajectory_digest")),
        ("content of the source", source["content_digest"]),
        ("content of the result", provenance["result"]["content_digest"]),
        ("versions", ", ".join(f"{name} {value}" for name, value in provenance["versions"].items() if value)),
        ("made", provenance["created"]),
    )
    return [(what, str(value)) for what, value in lines if value]


def _changed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for beyond the defaults."""
    return SelectionConfig.from_dict(arguments).changed()


def _plain(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What a call decided: of a preference the reason, and of a balance that there is none."""
    values = {name: value.get("reason") if isinstance(value, Mapping) else value for name, value in resolved.items()}
    return {name: "none" if value is False else value for name, value in values.items()}


def _join(values: Mapping[str, Any], names: Sequence[str], *, named: bool = False) -> str:
    known = [(name, values[name]) for name in names if values.get(name) is not None]
    return ", ".join(f"{name.replace('_', ' ')} {value}" if named else str(value) for name, value in known)
