"""What may leave this machine: fields on an allow-list, ids of the Hub, values that JSON holds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_LONGEST = 500
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def repository(value: Any) -> str | None:
    """Returns `value` if it can be the id of a repository on the Hub, else None."""
    return value if isinstance(value, str) and _HUB_ID.fullmatch(value) else None


def hub_id(value: Any) -> str | None:
    """Returns `value` if it can be the id of a repository on the Hub and is no file or directory here, else None."""
    return None if repository(value) is None or Path(value).exists() else str(value)


def commit(value: Any) -> str | None:
    """Returns `value` if it is a full commit hash, else None."""
    return value if isinstance(value, str) and _COMMIT.fullmatch(value) else None


def plain(value: Any) -> Any:
    """Returns `value` as JSON can hold it: numbers, text, booleans, None, and lists and mappings of these.

    Infinite and undefined numbers become None, because JSON has none. Text is cut at 500 characters.

    Raises:
        `TypeError`: for any other object.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)[:_LONGEST]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy's numbers and arrays; to import it takes longer than `hf-prune --help`
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"A {type(value).__name__} cannot be written to provenance.json.")


def pick(mapping: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    """Returns the fields of `mapping` that are on the allow-list `names`, in that order; the others do not get out."""
    return {name: plain(mapping[name]) for name in names if mapping is not None and name in mapping}
