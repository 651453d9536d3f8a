"""What may be published: values from allow-lists, and a last check that refuses secrets and local paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_prune._core.allowed import commit, hub_id, pick, plain, repository

__all__ = ["check", "commit", "hub_id", "pick", "plain", "repository"]

_ABSOLUTE = re.compile(r"(^|[\s\"'=:(,\[])(/[^\s/]|~[\w-]*/|[A-Za-z]:[\\/]|\\\\\w)|file:/")
_TOKEN = re.compile(r"(hf|api_org|sk|ghp|github_pat|glpat|xox[abp])[_-][A-Za-z0-9_-]{16,}")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)


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
