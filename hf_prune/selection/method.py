"""What a selection method is, and the table of them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice
from hf_prune.selection.problem import Problem

Choose: TypeAlias = Callable[[Problem, int, SelectionConfig], Choice]
"""From a problem, the number of rows to drop and what was asked for to the rows that go."""


@dataclass(frozen=True)
class Method:
    """
    A selection method.

    Args:
        name (`str`): What users pass as `method`.
        choose (`Callable`): `(problem, dropped, config) -> Choice`.
        reads (`tuple[str, ...]`): Options of [`SelectionConfig`] that this method reads and others do not.
        paper (`str`, *optional*): Where the method was published, a URL.
    """

    name: str
    choose: Choose
    reads: tuple[str, ...] = ()
    paper: str | None = None


METHODS: dict[str, Method] = {}
"""All methods by name: those of the files in `hf_prune/selection/methods/`, and any others that are registered."""


def method(name: str, *, reads: tuple[str, ...] = (), paper: str | None = None) -> Callable[[Choose], Choose]:
    """
    Registers a function as a selection method.

    Args:
        name (`str`): What users pass as `method`.
        reads (`tuple[str, ...]`, *optional*): Options that only some methods read, of which this is one.
        paper (`str`, *optional*): Where the method was published, a URL.
    """

    def register(choose: Choose) -> Choose:
        if name in METHODS:
            raise ValueError(f"A selection method {name!r} is already registered: choose another name.")
        METHODS[name] = Method(name, choose, reads, paper)
        return choose

    return register


def method_of(config: SelectionConfig) -> Method:
    """
    The method that was asked for.

    Raises:
        `ValueError`: if there is none of that name, or it does not read an option that was set.
    """
    if config.method not in METHODS:
        raise ValueError(f"method={config.method!r} is not known: pass one of {sorted(METHODS)}.")
    found = METHODS[config.method]
    changed = config.changed()
    for field in fields(config):
        readers = sorted(m.name for m in METHODS.values() if field.name in m.reads)
        if readers and field.name in changed and found.name not in readers:
            raise ValueError(
                f"method={found.name!r} does not use {field.name}: leave it out, or pass one of {readers} as method."
            )
    return found
