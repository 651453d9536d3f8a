"""Why scores of a run may not hold: said when it is noticed, and collected for those who read the scores later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DOUBTED = "The scores may not hold, which `diagnose` measures"
"""How a note begins that tells of a doubt."""

_FOUND: ContextVar[list[str] | None] = ContextVar("doubts", default=None)


def doubt(logger: logging.Logger, sentence: str) -> None:
    """Warns of something that makes scores less faithful."""
    logger.warning(sentence)
    found = _FOUND.get()
    if found is not None and sentence not in found:
        found.append(sentence)


@contextmanager
def doubts() -> Iterator[list[str]]:
    """Collects what is warned of by `doubt` while it lasts."""
    found: list[str] = []
    token = _FOUND.set(found)
    try:
        yield found
    finally:
        _FOUND.reset(token)
