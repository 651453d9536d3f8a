"""The reference from docstrings in the Hugging Face grammar, as they are at run time, where options are filled in."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe

import hf_prune

PUBLIC = "|".join(hf_prune.__all__)


def plain(docstring: str) -> str:
    """The docstring in Google's grammar: types without marks, public names as links."""
    text = re.sub(
        r"(?m)^(\s+\**\w+) \((.+?)(?:, \*optional\*)?(?:, defaults to .+?)?\):(?=\s|$)",
        lambda entry: f"{entry[1]} ({re.sub(r'[`*]', '', entry[2])}):",
        docstring,
    )
    text = re.sub(rf"\[`(?:~?[\w.]*\.)?({PUBLIC})(\.\w+)?`\](?!\()", r"[`\1\2`][hf_prune.\1\2]", text)
    text = re.sub(r"\[`~?(hf_prune\.publish\.push\.push_to_hub)`\]", r"[`push_to_hub`][\1]", text)
    return re.sub(r"\[`~?([^`]+)`\](?![(\[])", r"`\1`", text)


class AtRunTime(griffe.Extension):
    """Takes docstring and parameters of what is public from the imported package."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if not (obj.is_function or obj.is_class) or not obj.path.startswith("hf_prune."):
            return
        try:
            found: Any = importlib.import_module(obj.module.path)
            for name in obj.path.removeprefix(f"{obj.module.path}.").split("."):
                found = inspect.getattr_static(found, name)
        except (ImportError, AttributeError):
            return
        found = getattr(found, "__func__", getattr(found, "fget", None) or found)
        written = inspect.getdoc(found) if obj.docstring else None
        if written:
            obj.docstring.value = plain(written)  # type: ignore[union-attr]
        if obj.is_function and hasattr(found, "__signature__"):
            obj.parameters = griffe.Parameters(*map(parameter, inspect.signature(found).parameters.values()))


def parameter(one: inspect.Parameter) -> griffe.Parameter:
    return griffe.Parameter(
        one.name,
        annotation=None if one.annotation is one.empty else str(one.annotation),
        kind=griffe.ParameterKind[one.kind.name.lower()],
        default=None if one.default is one.empty else repr(one.default),
    )
