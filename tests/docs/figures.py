"""Figures as the documents show them, and the result files that they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)")
CODE = re.compile(r"(?s)```.*?```|`[^`\n]*`")


@cache
def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def one(name: str, value: str, /, **keys: Any) -> float:
    """The value of the one row of a result file that has these keys."""
    rows = [row for row in result(name)["rows"] if all(row.get(key) == wanted for key, wanted in keys.items())]
    assert len(rows) == 1, f"{len(rows)} rows of {name}.json have {keys}"
    return float(rows[0][value])


def best(name: str, value: str, method: str, /, **keys: Any) -> float:
    """The greatest value among the settings of a method, whose names begin with its own."""
    rows = [row for row in result(name)["rows"] if all(row.get(key) == wanted for key, wanted in keys.items())]
    return max(row[value] for row in rows if str(row.get("method")).startswith(method))


def table(document: str, header: str) -> list[list[str]]:
    """The cells of each row of the table with this first line."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.search(rf"(?m)^{re.escape(header)}\n\|[-|]+\|\n((?:\|.*\n?)+)", text)
    assert found, f"{document} has no table {header}"
    return [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in found[1].splitlines()]


def numbers(text: str) -> list[tuple[float, int]]:
    """Each number of a text with how many decimals it has."""
    found = [number.replace(",", "") for number in NUMBER.findall(re.sub(r"\\\*", "", text))]
    return [(float(number), len(number.partition(".")[2])) for number in found]


def agree(shown: str, values: Iterable[float]) -> bool:
    """Whether the numbers of a text are these values, rounded as they are shown."""
    found, wanted = numbers(shown), list(values)
    if len(found) != len(wanted):
        return False
    pairs = zip(found, wanted, strict=True)
    return all(abs(number - value) <= 0.5001 * 10.0**-decimals for (number, decimals), value in pairs)


def prose(document: str) -> str:
    """The text of a document without code and tables, in single lines."""
    text = CODE.sub("`code`", (ROOT / document).read_text(encoding="utf-8"))
    return re.sub(r"(?m)^\|.*$", "", text)


def said(document: str, phrase: str, values: list[float]) -> str:
    """Looks for a phrase with `{}` for each number, and returns it as the document has it."""
    pattern = re.escape(phrase).replace(r"\{\}", r"([+-]?[\d.,]*\d)").replace(r"\ ", r"\s+")
    found = re.search(pattern, prose(document))
    assert found, f"{document} does not say: {phrase}"
    assert agree(" ".join(found.groups()), values), (found[0], values)
    return found[0]
