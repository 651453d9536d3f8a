"""Merging our part into a card that somebody else may have written: nothing of theirs is lost."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from hf_prune.publish import limits

_FORBIDDEN = re.compile(r"[<>:/\\|?*\x00-\x1f]|^\.|--")
_UNITED = ("tags", "source_datasets")
_LICENSE = ("license", "license_name", "license_link")


def markers(config_name: str) -> tuple[str, str]:
    """Returns the two HTML comments between which our part of the body lives, one pair for each config.

    Raises:
        `ValueError`: if the name cannot be part of a comment and of a path.
    """
    if not config_name or _FORBIDDEN.search(config_name):
        raise ValueError(f"config_name={config_name!r} cannot name a folder: use letters, digits, '-', '_' and '.'.")
    suffix = "" if config_name == "default" else f" {config_name}"
    return f"<!-- hf_prune:start{suffix} -->", f"<!-- hf_prune:end{suffix} -->"


def section(card: str, config_name: str) -> str | None:
    """Returns our part of a card, markers included, None if it has none."""
    found = _pattern(config_name).search(card)
    return found.group(0) if found else None


def merge(existing: str | None, rendered: str, config_name: str) -> str:
    """Puts a freshly rendered card into an existing one.

    The text outside the markers stays as it is, and so does every key of the metadata; ours are added where they are
    missing (`license`) or united with what is there (`tags`, `source_datasets`). Merging twice changes nothing more.

    Args:
        existing (`str`, *optional*): the card as it is, None if there is none.
        rendered (`str`): the whole card as it would be without the other.
        config_name (`str`): whose part is replaced.

    Returns:
        `str`: the merged card.
    """
    if existing is None:
        return rendered
    ours, our_body = _split(rendered)
    theirs, their_body = _split(existing)
    line_break = "\r\n" if "\r\n" in existing else "\n"
    head = _head(existing, merge_metadata(theirs, ours))
    return head + _merge_body(their_body, our_body, config_name, line_break)


def metadata(existing: str | None) -> dict[str, Any]:
    """Returns the metadata of a card, an empty mapping if there is no card or no metadata.

    Raises:
        `ValueError`: if it cannot be read.
    """
    return {} if existing is None else _split(existing)[0]


def with_metadata(existing: str | None, data: dict[str, Any]) -> str:
    """Returns the card with other metadata; its text stays as it is."""
    existing = existing or ""
    return _head(existing, data) + _split(existing)[1]


def _head(existing: str, data: dict[str, Any]) -> str:
    block = REGEX_YAML_BLOCK.search(existing)
    if block and data == _split(existing)[0]:
        return block.group(0)  # byte for byte, with comments and quoting as they were
    line_break = "\r\n" if "\r\n" in existing else "\n"
    return line_break.join(["---", *yaml_dump(data, sort_keys=False).rstrip("\n").split("\n"), "---", ""])


def merge_metadata(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Returns `theirs` with what only `ours` has; the order of their keys and list items stays."""
    merged = dict(theirs)
    for key, value in ours.items():
        if key in _UNITED:
            present = _listed(merged.get(key))
            missing = [item for item in _listed(value) if item not in present]
            if missing:
                merged[key] = present + missing
        elif merged.get(key) in (None, [], "") and (key not in _LICENSE or not theirs.get("license")):
            merged[key] = value
    return merged


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _split(card: str) -> tuple[dict[str, Any], str]:
    block = REGEX_YAML_BLOCK.search(card)
    if block is None:
        return {}, card
    try:
        return limits.card_metadata(card, "the card that is there"), card[block.end() :]
    except limits.ReplayError as error:
        raise ValueError(f"{error} Fix the first lines of README.md, then push or save again.") from error


def _merge_body(theirs: str, ours: str, config_name: str, line_break: str) -> str:
    part = section(ours, config_name)
    if part is None:
        raise ValueError("The rendered card has no part between the markers of hf_prune.")
    part = part.replace("\n", line_break)
    if section(theirs, config_name):
        return _pattern(config_name).sub(lambda _: part, theirs, count=1)
    if not theirs.strip():
        return ours.replace("\n", line_break)
    gap = "" if theirs.endswith(line_break * 2) else line_break if theirs.endswith(line_break) else line_break * 2
    return theirs + gap + part + line_break


def _pattern(config_name: str) -> re.Pattern[str]:
    """From the last start before an end: a start that lost its end must not swallow the text that follows it."""
    start, end = (re.escape(marker) for marker in markers(config_name))
    return re.compile(f"{start}(?:(?!{start}).)*?{end}", re.DOTALL)
