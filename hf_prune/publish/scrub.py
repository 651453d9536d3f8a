"""What may be published: allow-lists for fields, and a last check that refuses secrets and local paths."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LONGEST = 500
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ABSOLUTE = re.compile(r"(^|[\s\"'=:(,\[])(/[^\s/]|~[\w-]*/|[A-Za-z]:[\\/]|\\\\\w)|file:/")
_TOKEN = re.compile(r"(hf|api_org|sk|ghp|github_pat|glpat|xox[abp])[_-][A-Za-z0-9_-]{16,}")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)


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
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"A {type(value).__name__} cannot be written to provenance.json.")


def pick(mapping: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    """Returns the fields of `mapping` that are on the allow-list `names`, in that order; the others do not get out."""
    return {name: plain(mapping[name]) for name in names if mapping is not None and name in mapping}


def check(document: Any, unread: tuple[str, ...] = ()) -> None:
    """Refuses a document that holds an absolute path, an access token or the value of a secret environment variable.

    Args:
        document (`Any`): what is about to be published, as JSON holds it.
        unread (`tuple[str, ...]`, *optional*): fields that hold the dataset's own names (columns, classes), which are
            published with the data anyway and may look like anything. Only known secrets are looked for there.

    Raises:
        `ValueError`: names the field, and never repeats what it holds.
    """
    secrets = _secrets()
    for where, text, own in _texts(document, "", False, unread):
        if _TOKEN.search(text) or any(secret in text for secret in secrets):
            raise ValueError(f"{where} holds an access token or a secret: take it out of the arguments.")
        if not own and _ABSOLUTE.search(text):
            raise ValueError(f"{where} holds a path of this machine, which is not published: pass a Hub id instead.")


def _texts(value: Any, where: str, own: bool, unread: tuple[str, ...]) -> Iterable[tuple[str, str, bool]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            here = f"{where}.{key}" if where and not own else where or str(key)
            yield here, str(key), own
            yield from _texts(item, here, own or key in unread, unread)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, where, own, unread)
    elif isinstance(value, str):
        yield where or "The text", value, own


def _secrets() -> list[str]:
    """Values that must never appear: the home directory, and what variables with a telling name hold."""
    named = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8]
    home = str(Path.home())
    return named + ([home] if len(home) > 5 else [])
