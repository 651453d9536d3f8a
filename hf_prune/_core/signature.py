"""Options that are fields of a configuration, shown as the keyword arguments of a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from hf_prune._core.config import Config

F = TypeVar("F", bound=Callable[..., Any])


def takes(config: type[Config], *apart: str) -> Callable[[F], F]:
    """
    Shows the fields of a configuration as keyword arguments of a function that takes them as `**options`.

    The signature, and the docstring in the place of its entry `**options`, are made from the configuration, so that an
    option is written down once.

    Args:
        config (`type[Config]`): The configuration.
        *apart (`str`): Fields that the function does not take.
    """

    def decorate(function: F) -> F:
        shown = [f for f in fields(config) if f.name not in apart]
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        own = {p.name for p in named}
        added = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in shown
            if f.name not in own
        ]
        function.__signature__ = signature.replace(parameters=[*named, *added])  # type: ignore[attr-defined]
        documented = entries(config)
        text = "".join(documented[f.name] for f in shown if f.name not in own)
        function.__doc__ = _entry_of_options(function.__doc__ or "", text)
        return function

    return decorate


def entries(config: type[Config]) -> dict[str, str]:
    """The entries of the section `Args:` of a docstring, by field."""
    lines = inspect.cleandoc(config.__doc__ or "").split("Args:\n", 1)[1].splitlines(keepends=True)
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:4].isspace() and not line[4:5].isspace():
            name = line.split()[0]
            found[name] = ""
        found[name] += line if line.endswith("\n") else line + "\n"
    return found


def _entry_of_options(docstring: str, entries: str) -> str:
    """The docstring with `entries` in the place of the entry `**options`."""
    lines, result, inside = inspect.cleandoc(docstring).splitlines(keepends=True), "", False
    for line in lines:
        if line.startswith("    **options"):
            result, inside = result + entries, True
        elif not (inside and line.startswith("        ")):
            result, inside = result + line, False
    return result
