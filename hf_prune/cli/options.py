"""Options of the command line that are fields of a configuration: written down there, and nowhere else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from hf_prune._core.config import Config
from hf_prune._core.signature import entries
from hf_prune._core.words import plain

F = TypeVar("F", bound=Callable[..., Any])


def options_of(config: type[Config], *apart: str) -> Callable[[F], F]:
    """
    Gives a command that takes `**options` an option for each field: name, default and help are the field's.

    Args:
        config (`type[Config]`): The configuration.
        *apart (`str`): Fields that the command does not take.
    """

    def decorate(command: F) -> F:
        hints = get_type_hints(command, include_extras=True)
        kinds, documented = get_type_hints(config), entries(config)
        own = [
            p.replace(annotation=hints[p.name])
            for p in inspect.signature(command).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        added = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[_kind(kinds[field.name]), typer.Option(help=_help(documented[field.name]))],
            )
            for field in fields(config)
            if field.name not in apart
        ]
        command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        return command

    return decorate


def parsed(config: type[Config], options: Mapping[str, Any]) -> dict[str, Any]:
    """
    The options as the configuration takes them: `none` and numbers are text on the command line.

    Raises:
        `TypeError`, `ValueError`: For a value that the configuration does not allow.
    """
    kinds = get_type_hints(config)
    given = [field for field in fields(config) if field.name in options]
    values = {field.name: _value(field, kinds[field.name], options[field.name]) for field in given}
    config.of(**values)  # says what is wrong before anything is loaded
    return values


def _types(kind: Any) -> set[Any]:
    return set(get_args(kind)) or {kind}


def _kind(kind: Any) -> Any:
    """What typer reads the option as: its own type where there is one, text where several are allowed."""
    types = _types(kind)
    several = types - {type(None)}
    read = several.pop() if len(several) == 1 else str
    return read | None if type(None) in types else read


def _value(field: Field[Any], kind: Any, value: Any) -> Any:
    types = _types(kind)
    if not isinstance(value, str) or types <= {str, type(None)} or value == field.default:
        return value
    if value == "none":
        return False if bool in types else None
    if not types & {int, float}:
        return value
    try:
        return int(value) if value.isdecimal() else float(value)
    except ValueError as error:
        raise typer.BadParameter(f"{value!r} is not a number.", param_hint=f"--{field.name}") from error


def _help(entry: str) -> str:
    """The text of a docstring's entry in one line, without marks: of a link the words."""
    _, _, text = entry.partition(":\n")
    return plain(re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", " ".join(text.split())))
