"""What can be changed in a function, one small thing at a time: the mutants that `mutation.py` tests."""

from __future__ import annotations

import ast
import copy
import gc
import importlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).parents[1]

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
