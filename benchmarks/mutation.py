"""
Which changes of core mathematics no test notices: one small change at a time, against the tests of its module.

A mutant is one changed operator, comparison, number, name or statement inside a function of the files in `TESTS`: a
sign turned, a difference the other way, a product for a quotient, `argmin` for `argmax`, a root or a line left out.
Messages, types, logging and numbers outside of functions (how much work is worth while, not what is right) stay as
they are. Each mutant is tested in a process of its own, forked from one that has imported everything and run nothing,
by its module's tests, the fast ones first, until one fails or the time is over (an endless loop is noticed too). Tests
that start further processes see unchanged code there. `EQUIVALENT` holds the survivors that no test can notice.

    nice -n 15 python benchmarks/mutation.py --profile full --out benchmarks/results/mutation.json --minutes 60
    python benchmarks/mutation.py --only hf_prune/influence/clipping.py

`quick` (a part of the tests of hf_prune) takes a few mutants of the fastest tests, `sample` 200 of all files, as many
of each file as there are, `full` all. A run goes on where the one before it that wrote the same file ended: what was
noticed is not tried again, what survived is. Begin a new file where a module's tests were changed or taken away.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import itertools
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from mutation_tests import EQUIVALENT, QUICK, TESTS

ROOT = Path(__file__).parents[1]
# What tests import, done once.
LIBRARIES = ("hf_prune", "hf_prune.testing", "pytest", "hypothesis", "tests.toys", "tests.influence.runs")
# As in tests/conftest.py: the libraries are imported before it.
SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "agg",
}
UNMADE = "the change could not be made"
SAMPLE, SEED, SECONDS = 200, 0, 240

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_PAIRS = ("min max", "argmin argmax", "any all", "minimum maximum", "floor ceil", "add_ sub_", "mul_ div_", "sum mean")
NAMES = {a: b for pair in _PAIRS for a, b in (pair.split(), pair.split()[::-1])} | {
    "amax": "amin",
    "argsort": "argmin",
}
# Functions of one value that are left out.
LEFT_OUT = {
    "abs",
    "sqrt",
    "rsqrt_",
    "sqrt_",
    "square",
    "exp",
    "log",
    "clamp",
    "floor",
    "reciprocal_",
    "reversed",
    "sorted",
}
KEYWORDS = {"alpha", "value", "weights", "ddof"}
# Smaller numbers keep a division from failing.
LEAST = 1e-6
# What says something to people or to type checkers.
QUIET_CALLS = {"logger", "warnings", "bar"}
QUIET_KEYWORDS = {"desc", "unit", "disable", "total", "device", "dtype", "axis", "dim", "keepdims", "strict"}
QUIET_FUNCTIONS = {"__repr__", "__str__", "_repr_html_", "explain", "to_dict"}


@dataclass(frozen=True)
class Mutant:
    """One change: where, and what it was and becomes, in the words of `EQUIVALENT`."""

    path: str
    function: str
    line: int
    change: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.path}::{self.function}: {self.change}"

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def apply(self) -> None:
        """Gives the function, wherever it is known by now, its changed code."""
        tree = ast.parse((ROOT / self.path).read_text(encoding="utf-8"))
        place, change, _ = next(itertools.islice(_changes(tree), self.number, None))
        _replace(tree, place, change)
        code = compile(ast.fix_missing_locations(tree), str(ROOT / self.path), "exec", dont_inherit=True)
        for name in self.function.split("."):
            (code,) = [c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name]
        file = importlib.import_module(self.module).__file__
        found = [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__code__.co_filename == file]
        (function,) = [f for f in found if f.__qualname__ == self.function]
        function.__code__ = code


def mutants_of(path: str) -> list[Mutant]:
    """All mutants of a file; of equal changes in one function the later ones are numbered."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found, seen = [], Counter[tuple[str, str]]()
    for number, (place, change, function) in enumerate(_changes(tree)):
        words = f"{_shown(place)} -> {_shown(change)}"
        seen[function, words] += 1
        if seen[function, words] > 1:
            words += f" (#{seen[function, words]})"
        found.append(Mutant(path, function, place.lineno, words, number))
    return found


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:60]} ... {text[-25:]}"


def _replace(tree: ast.AST, place: ast.AST, change: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is place:
                setattr(parent, name, change)
            elif isinstance(value, list):
                setattr(parent, name, [change if item is place else item for item in value])


def _changes(tree: ast.Module) -> Iterator[tuple[Any, ast.AST, str]]:
    """`(node, what takes its place, function)` of every change in a module."""

    def inside(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[Any, ast.AST, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from inside(child, (*names, child.name))
            elif isinstance(child, ast.FunctionDef) and child.name not in QUIET_FUNCTIONS:
                for statement in child.body:
                    yield from _in_code(statement, ".".join((*names, child.name)))

    yield from inside(tree, ())


def _in_code(node: ast.AST, function: str) -> Iterator[tuple[Any, ast.AST, str]]:
    if _quiet(node):
        return
    for place, change in _of_node(node):
        yield place, ast.copy_location(change, place), function
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _in_code(child, function)


def _quiet(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        return True
    if isinstance(node, ast.keyword):
        return node.arg in QUIET_KEYWORDS
    value = node.func if isinstance(node, ast.Call) else None
    if isinstance(value, ast.Attribute):
        value = value.value
    return isinstance(value, ast.Name) and value.id in QUIET_CALLS


def _of_node(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    match node:
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in OPERATORS:
            yield node, _with(node, op=OPERATORS[type(node.op)]())
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
                yield node, _with(node, left=node.right, right=node.left)
        case ast.Compare(ops=[operator]) if type(operator) in OPERATORS:
            yield node, _with(node, ops=[OPERATORS[type(operator)]()])
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield node, node.operand
        case ast.Constant(value=bool()):
            yield node, ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield node, ast.Constant(node.value + 1)
        case ast.Constant(value=float()) if node.value == 0 or abs(node.value) >= LEAST:
            yield node, ast.Constant(2 * node.value or 1.0)
        case ast.IfExp() | ast.If() if not _turned(node.test):
            yield node.test, ast.UnaryOp(ast.Not(), node.test)
        case ast.Slice(lower=None, upper=ast.AST(), step=None) | ast.Slice(lower=ast.AST(), upper=None, step=None):
            yield node, ast.Slice(node.upper, node.lower, None)
        case ast.Call():
            yield from ((node, change) for change in _of_call(node))
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _quiet(node.value)
    if called or isinstance(node, ast.AugAssign):
        yield node, ast.Pass()


def _turned(test: ast.AST) -> bool:
    """Whether another change says the opposite of a condition already."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return isinstance(test.ops[0], ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn)
    return isinstance(test, ast.UnaryOp)


def _of_call(node: ast.Call) -> Iterator[ast.AST]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    if name in NAMES:
        new = NAMES[name]
        func = _with(node.func, attr=new) if isinstance(node.func, ast.Attribute) else ast.Name(new, ast.Load())
        if new != "mean" or isinstance(node.func, ast.Attribute):  # there is no function mean
            yield _with(node, func=func)
    if name in LEFT_OUT:
        of_module = isinstance(node.func, ast.Name) or ast.unparse(node.func.value) in ("np", "torch", "math")
        yield node.args[0] if of_module else node.func.value  # type: ignore[union-attr]
    for keyword in node.keywords:
        if keyword.arg in KEYWORDS:
            yield _with(node, keywords=[other for other in node.keywords if other is not keyword])


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


class _FirstFailure:
    """A plugin of pytest that notes which test failed."""

    def __init__(self) -> None:
        self.test = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        self.pytest_runtest_logreport(report)


def outcome(mutant: Mutant | None, tests: tuple[str, ...], seconds: float = SECONDS) -> tuple[str, str]:
    """`"killed"`, `"timeout"` or `"survived"`, and the test that noticed; without a mutant the code as it is."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(read)
        _test(mutant, tests, write)
    os.close(write)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", ""
        time.sleep(0.05)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    if said == "passed":
        return "survived", ""
    if said == UNMADE:
        raise RuntimeError(f"{mutant}: {said}")
    return "killed", said or "the process died"


def _test(mutant: Mutant | None, tests: tuple[str, ...], write: int) -> None:
    """In the forked process: runs the tests and says which one failed."""
    said = UNMADE
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if mutant is not None:
            mutant.apply()
        failure = _FirstFailure()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile", "first failure"]
        code = importlib.import_module("pytest").main([*options, *tests], plugins=[failure])
        said = "passed" if code == 0 else failure.test or f"pytest ended with {int(code)}"
    finally:
        os.write(write, said.encode())
        os._exit(0)


def chosen(profile: str, only: tuple[str, ...] = ()) -> list[Mutant]:
    """The mutants of a profile: a seeded draw, one file after the other until there are enough."""
    paths = sorted(str(path.relative_to(ROOT)) for name in TESTS for path in ROOT.glob(name))
    draw, found = random.Random(SEED), []
    if profile == "quick" and not only:
        return [mutant for path, count in QUICK.items() for mutant in draw.sample(mutants_of(path), count)]
    for path in dict.fromkeys(paths):
        own = [mutant for mutant in mutants_of(path) if mutant.name.startswith(only or path)]
        found.append(draw.sample(own, len(own)))
    turns = [mutant for turn in itertools.zip_longest(*found) for mutant in turn if mutant is not None]
    return turns if profile == "full" or only else turns[:SAMPLE]


def tests_of(mutant: Mutant) -> tuple[str, ...]:
    return next(tests for name, tests in TESTS.items() if Path(mutant.path).match(name))


def known(out: Path | None) -> dict[str, dict[str, Any]]:
    """What an earlier run found, by mutant, where the mutant is still one."""
    if out is None or not out.exists():
        return {}
    names = {mutant.name for mutant in chosen("full")}
    rows = [row for row in json.loads(out.read_text(encoding="utf-8"))["rows"] if row["mutant"] in names]
    for row in rows:
        if row["result"] == "survived" and row["mutant"] in EQUIVALENT:
            row["result"] = "equivalent"
    return {row["mutant"]: row for row in rows}


def summary_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(row["result"] for row in rows)
    return {"mutants": len(rows)} | {name: counts[name] for name in ("killed", "timeout", "equivalent", "survived")}


def write(out: Path, profile: str, rows: list[dict[str, Any]]) -> None:
    survivors = [row["mutant"] for row in rows if row["result"] == "survived"]
    result = {"name": "mutation", "profile": profile, "summary": summary_of(rows), "survivors": survivors}
    out.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--profile", choices=("quick", "sample", "full"), default="quick")
    parser.add_argument(
        "--only", nargs="+", default=(), help="only mutants whose name begins so: a directory, a file, or its function"
    )
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON, and to go on from")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further mutant after so long")
    options = parser.parse_args()
    mutants = chosen(options.profile, tuple(options.only))
    if options.list:
        print(*sorted(f"{mutant.name}  (line {mutant.line})" for mutant in mutants), sep="\n")
        return 0
    out = options.out.absolute() if options.out else None
    os.chdir(ROOT)
    os.environ.update(SURROUNDINGS)
    sys.path.insert(0, str(ROOT))
    for name in dict.fromkeys((*LIBRARIES, *(mutant.module for mutant in mutants))):
        importlib.import_module(name)
    rows, passing, end = known(out), set(), time.monotonic() + 60 * options.minutes
    for mutant in mutants:
        if mutant.name in rows and rows[mutant.name]["result"] != "survived":
            continue
        if time.monotonic() > end:
            break
        tests = tests_of(mutant)
        if tests not in passing and outcome(None, tests)[0] != "survived":
            print(f"Without any change one of {', '.join(tests)} fails or takes too long: mend that first.")
            return 2
        passing.add(tests)
        result, by = outcome(mutant, tests)
        if result == "survived" and mutant.name in EQUIVALENT:
            result = "equivalent"
        rows[mutant.name] = {"mutant": mutant.name, "result": result, "by": by}
        print(f"{result:10} {mutant.name}  (line {mutant.line}; {by or 'no test'})", flush=True)
        if out:
            write(out, options.profile, list(rows.values()))
    summary = summary_of(list(rows.values()))
    print(json.dumps(summary))
    return 1 if summary["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
