"""Rows of a dataset as texts that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, List, Value


def text_columns(dataset: Dataset) -> list[str]:
    """The columns of text: strings, and conversations."""
    strings = [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    ]
    chats = [name for name in ("prompt", "completion") if _is_conversation(dataset.features.get(name))]
    return [*strings, *(["messages"] if isinstance(dataset.features.get("messages"), list | List) else []), *chats]


def _is_conversation(feature: Any) -> bool:
    """A prompt may also be a list of tokens."""
    inner = feature.feature if isinstance(feature, List) else feature[0] if isinstance(feature, list) else None
    return isinstance(inner, Mapping) and "content" in inner


def conversation(messages: Any) -> str:
    """A list of `{"role", "content"}` as lines."""
    return "\n".join(
        f"{message.get('role', '')}: {message.get('content', '')}" if isinstance(message, Mapping) else str(message)
        for message in messages or ()
    )


def text_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The texts of a row in these columns, each after its column's name where there are several; None if empty."""
    parts = {name: row[name] if isinstance(row[name], str) else conversation(row[name]) for name in names}
    known = {name: text for name, text in parts.items() if text}
    if not known:
        return None
    return "\n".join(known.values() if len(names) == 1 else (f"{name}: {text}" for name, text in known.items()))


def label_of(dataset: Dataset, column: str | None, value: Any) -> str | None:
    """A class as its name, or any other label as it is; None if there is none."""
    if column is None or value is None:
        return None
    feature = dataset.features[column]
    named = isinstance(feature, ClassLabel) and 0 <= value < feature.num_classes
    return feature.int2str(value) if named else str(value)
