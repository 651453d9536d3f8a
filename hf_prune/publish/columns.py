"""Which columns of pruned rows are published: what the rows say, and scores and tokens for those who ask."""

from __future__ import annotations

import logging
from typing import Any

from datasets import LargeList, List, Value

from hf_prune._core.columns import LAST_LAYER_INFLUENCE, InfluenceColumns
from hf_prune.selection.pruned import PrunedDataset

logger = logging.getLogger(__name__)

_TOKENS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "special_tokens_mask",
    "offset_mapping",
    "assistant_masks",
    "completion_mask",
)
"""What tokenizers and trl's trainers make."""


def published(pruned: PrunedDataset, *, include_scores: bool, include_tokens: bool) -> PrunedDataset:
    """
    Leaves out the influence columns, and tokens where the rows hold the text that they were made of.

    Args:
        pruned (`PrunedDataset`): The kept rows.
        include_scores (`bool`): Keep the influence columns.
        include_tokens (`bool`): Keep the tokens.
    """
    names = {*InfluenceColumns(pruned.selection.config.column), LAST_LAYER_INFLUENCE}
    left_out = [] if include_scores else [name for name in pruned.column_names if name in names]
    tokens = [] if include_tokens else _tokens(pruned)
    if tokens:
        logger.warning(
            f"The columns {', '.join(tokens)} are tokens of what the rows say, and are left out: pass "
            "include_tokens=True to publish them. Trainers may also have put an ending such as <eos> to every text: "
            "selection.apply(raw) takes the same rows as they were before."
        )
    return pruned.remove_columns([*left_out, *tokens]) if left_out or tokens else pruned


def _tokens(pruned: PrunedDataset) -> list[str]:
    found = [name for name in _TOKENS if name in pruned.column_names]
    if "input_ids" in found and isinstance(pruned.features.get("labels"), List | LargeList):
        found.append("labels")
    said = any(_is_said(feature) for name, feature in pruned.features.items() if name not in found)
    return found if said else []


def _is_said(feature: Any) -> bool:
    """Whether a feature holds text, images, sound or the like, that tokens can be made of."""
    if isinstance(feature, dict):
        return any(map(_is_said, feature.values()))
    if isinstance(feature, list):
        return any(map(_is_said, feature))
    if isinstance(feature, List | LargeList):
        return _is_said(feature.feature)
    return hasattr(feature, "embed_storage") or (
        isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    )
