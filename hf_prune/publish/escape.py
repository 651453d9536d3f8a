"""Names are untrusted: how a value gets into Markdown, a table, a code block or HTML without doing anything.

The templates pass every value through `finalize`, so what is not marked `Safe` is escaped.
"""

from __future__ import annotations

import math
import re
from typing import Any

from hf_prune._core.reading import one_line

_SPECIAL = re.compile(r"([\\`*_\[\]#~|$!])")


class Safe(str):
    """Text that is Markdown already."""

    __slots__ = ()


def finalize(value: Any) -> Any:
    """What the templates do with a value: numbers and `Safe` text pass, other text is escaped, `None` is unknown."""
    if isinstance(value, Safe | int | float):
        return value
    return Safe("unknown") if value is None else text(value)


def text(value: Any) -> Safe:
    """Escapes a value for running Markdown: no markup, no HTML, no automatic link."""
    line = one_line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Safe(_SPECIAL.sub(r"\\\1", line).replace("://", "&#58;//"))


def code(value: Any) -> Safe:
    """Makes a code span that shows the value as it is, whatever backticks it holds; `None` is unknown."""
    if value is None:
        return Safe("unknown")
    line = one_line(value) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return Safe(f"{fence}{pad}{line}{pad}{fence}")


def cell(value: Any) -> Safe:
    """A code span inside a table, where a bar would end the cell."""
    return Safe(code(value).replace("|", "\\|"))


def python(value: Any) -> Safe:
    """The value as a Python literal, for a code block."""
    return Safe(repr(one_line(value) if isinstance(value, str) else value))


def number(value: Any, digits: int = 3) -> Safe:
    """A number with that many significant digits, an integer in full; `None` and NaN are unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Safe("unknown")
    return Safe(f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}")
