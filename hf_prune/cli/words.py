"""Sentences of the library in the words of the command line: `keep=0.5` is `--keep 0.5` there."""

from __future__ import annotations

import re
from collections.abc import Collection

COMMANDS = {"add_influence": "hf-prune score", "add_scores": "hf-prune score --scores"}
"""Functions that sentences advise to call, and the commands that do so."""

_CALL = re.compile(rf"\b({'|'.join(COMMANDS)})(?:\(([^()]*)\))?")
_VALUE = re.compile(r"(?<![\w.])([a-z]\w*)=('[^']*'|\"[^\"]*\"|\w+(?:\.\w+)*|(?=\W|$))")


def in_options(sentence: str, names: Collection[str], own: Collection[str]) -> str:
    """
    A sentence with options in the place of arguments.

    Args:
        sentence (`str`): What the library says, or the command itself.
        names (`Collection[str]`): Arguments that are options of some command.
        own (`Collection[str]`): Those of the command that was called.
    """
    if "in Python" not in sentence:  # which names functions to call there
        sentence = _CALL.sub(lambda found: _called(found, names), sentence)
    sentence = _VALUE.sub(lambda found: _valued(found, names), sentence)
    long = "|".join(sorted((name for name in names if "_" in name), key=len, reverse=True))
    sentence = re.sub(rf"(?<![\w.'\"-])({long})\b(?![.(='\"])", lambda found: option(found[1]), sentence)
    return re.sub(rf"^({'|'.join(own)})(?= (?:is|must|has|needs|names)\b)", lambda found: option(found[1]), sentence)


def option(name: str) -> str:
    """The option of an argument."""
    return "--" + name.replace("_", "-")


def _called(found: re.Match[str], names: Collection[str]) -> str:
    words = [COMMANDS[found[1]]]
    for part in (found[2] or "").split(", "):
        name, equals, value = part.partition("=")
        if equals and name in names and value != name:
            words.append(option(name) if value == "True" else f"{option(name)} {_quoted(value)}")
    return " ".join(words)


def _quoted(value: str) -> str:
    return f"<{value}>" if " " in value else value.strip("'\"")


def _valued(found: re.Match[str], names: Collection[str]) -> str:
    name, value = found[1], found[2].strip("'\"")
    if name not in names:
        return found[0]
    if value == "True":
        return option(name)
    if value in ("False", "None"):
        return f"{option(name)} none"
    return f"{option(name)} {value}".rstrip()
