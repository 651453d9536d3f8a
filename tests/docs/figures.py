"""Figures as the documents show them, and where they come from: a result file, or the code."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)")
FIGURE = re.compile(rf"(?<![\w.])(?<!\w[-/]){NUMBER.pattern}(?:e-?\d+)?")
"""A number that is no part of a name (`float32`, CIFAR-10)."""
CODE = re.compile(r"(?s)```.*?```|`[^`\n]*`")
FENCED = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")


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


def number(text: str) -> float:
    return float(text.replace(",", "").rstrip("."))


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


class _Constants(dict[str, Any]):
    """The constants of a module, by the expressions that are assigned to them; no other code of it runs."""

    def __init__(self, file: str) -> None:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        self.assigned: dict[str, ast.expr] = {}
        for node in tree.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.assigned[node.target.id] = node.value
            elif isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                pairs = zip(target.elts, value.elts, strict=True) if several else [(target, value)]
                self.assigned |= {part.id: own for part, own in pairs if isinstance(part, ast.Name)}

    def __missing__(self, name: str) -> Any:
        return eval(compile(ast.Expression(self.assigned[name]), name, "eval"), {}, self)


def constant(file: str, name: str, *keys: str) -> Any:
    """The value of a constant of a module, read without running it; with `keys`, what lies below in dicts."""
    value = _Constants(file)[name]
    for key in keys:
        value = value[key]
    return value


def written(file: str, code: str) -> list[float]:
    """The numbers that a line of code has in the places of `{}`."""
    pattern = re.escape(code).replace(r"\{\}", r"([\d_.e-]+)")
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"))
    assert found, f"{file} does not say: {code}"
    return [float(number) for number in found.groups()]


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def literals_of(*nodes: ast.AST) -> set[float]:
    found = [part.value for node in nodes for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return {float(value) for value in found if isinstance(value, int | float)}


@cache
def literals(test: str) -> frozenset[float]:
    """The numbers in the file of a test, and in the functions of other tests that it calls."""
    files = [p for p in (ROOT / "tests").rglob("*.py") if f"def {test}(" in p.read_text(encoding="utf-8")]
    assert files, f"no test is called {test}"
    found = literals_of(*map(parsed, files))
    for node in (node for file in files for node in parsed(file).body if isinstance(node, ast.ImportFrom)):
        module = ROOT / f"{(node.module or '').replace('.', '/')}.py"
        if module.is_file() and "tests" in module.parts:
            names = {name.name for name in node.names}
            found |= literals_of(*(part for part in parsed(module).body if getattr(part, "name", None) in names))
    return frozenset(found)


@cache
def checked_tables() -> frozenset[str]:
    """First lines of the tables that `test_figures.py` compares, cell by cell."""
    source = (ROOT / "tests/docs/test_figures.py").read_text(encoding="utf-8")
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    headers = frozenset(text for text in texts if isinstance(text, str) and text.startswith("| "))
    assert len(headers) == source.count("table("), "each is the first line of a table that a test reads"
    return headers


@cache
def prose(document: str) -> str:
    """The text of a document without code, addresses, numbers of a list's items, and tables that are compared."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for header in checked_tables():
        text = re.sub(rf"(?m)^{re.escape(header)}\n(?:\|.*\n?)+", "", text)
    text = CODE.sub(lambda code: code[0] if code[0].startswith("`test_") else "`code`", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"(?m)^\d+\. ", "", text)


def blocks(document: str, *languages: str) -> list[str]:
    """What stands in a document between fences of these languages."""
    found = FENCED.finditer((ROOT / document).read_text(encoding="utf-8"))
    return [block[2] for block in found if block[1] in languages]


def same_output(shown: str, printed: str) -> bool:
    """Whether each line that is shown was printed, with figures that differ by a twentieth at most."""
    lines = printed.splitlines()
    return all(any(_alike(line, other) for other in lines) for line in shown.splitlines())


def _alike(line: str, other: str) -> bool:
    if NUMBER.sub("#", line) != NUMBER.sub("#", other):
        return False
    ours, theirs = ([value for value, _ in numbers(text)] for text in (line, other))
    return bool(np.allclose(ours, theirs, rtol=0.05, atol=0))


def said(document: str, phrase: str, values: list[float]) -> re.Match[str]:
    """Looks for a phrase with `{}` for each number in the prose of a document, and compares these."""
    pattern = re.escape(phrase).replace(r"\{\}", r"([+-]?[\d.,]*\d)").replace(r"\ ", r"\s+")
    found = re.search(pattern, prose(document))
    assert found, f"{document} does not say: {phrase}"
    assert agree(" ".join(found.groups()), values), (found[0], values)
    return found
