"""
How much the package logs.

All modules log to the standard library's logger of their name, below `"hf_prune"`, and the package adds no handler of
its own until it is asked to: warnings go to stderr, as Python sends them there, and an application's own logging
configuration holds.
"""

from __future__ import annotations

import logging

__all__ = ["get_verbosity", "set_verbosity"]

_ROOT = logging.getLogger("hf_prune")


def get_verbosity() -> int:
    """The level from which on messages are shown, such as `logging.WARNING`."""
    return _ROOT.getEffectiveLevel()


def set_verbosity(verbosity: int | str) -> None:
    """
    Sets the level from which on messages of this package are shown.

    They go to stderr, unless the application has set up logging: then they go where its messages go.

    Args:
        verbosity (`int` or `str`):
            A level of the module `logging`, or its name: `"debug"`, `"info"`, `"warning"` or `"error"`.

    Raises:
        `ValueError`: If there is no level of that name.

    Example:

    ```py
    >>> import hf_prune
    >>> hf_prune.set_verbosity("info")
    >>> hf_prune.get_verbosity()
    20

    ```
    """
    names = logging.getLevelNamesMapping()
    if isinstance(verbosity, str) and verbosity.upper() not in names:
        raise ValueError(
            f"There is no verbosity {verbosity!r}: pass 'debug', 'info', 'warning', 'error' or 'critical'."
        )
    _ROOT.setLevel(names[verbosity.upper()] if isinstance(verbosity, str) else verbosity)
    if not _ROOT.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[%(levelname)s|%(name)s] %(message)s"))
        _ROOT.addHandler(handler)
