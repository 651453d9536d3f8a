"""The public surface: every exported name is there and documented, every module can be imported by its name."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

import pytest

import hf_prune

ROOT = Path(hf_prune.__file__).parent
STUB = ROOT / "__init__.pyi"
FIRST = (
    "PrunedDataset",
    "RecordingError",
    "Selection",
    "Trajectory",
    "TrajectoryCallback",
    "TrajectoryError",
    "UnsupportedError",
    "add_influence",
    "add_scores",
    "diagnose",
    "estimate",
    "prune",
    "prune_path",
    "replay",
    "select",
    "verify",
    "with_example_ids",
)
"""Names that the first version had: they stay."""


def modules() -> list[str]:
    """Every module, but those that run or need what is not installed."""
    found = [module.name for module in walk_packages(hf_prune.__path__, "hf_prune.")]
    return [name for name in found if not name.endswith(("__main__", "generalization_gap.generalization_gap"))]


def documented() -> Iterator[tuple[str, str]]:
    """Every docstring of the package, by where it is."""
    for file in sorted(ROOT.rglob("*.py")):
        where = str(file.relative_to(ROOT.parent))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                yield f"{where}: {getattr(node, 'name', 'module')}", str(ast.get_docstring(node))


def test_the_names_of_the_first_version_are_still_there():
    assert set(FIRST) <= set(hf_prune.__all__)
    assert len(hf_prune.__all__) == len(set(hf_prune.__all__))


@pytest.mark.parametrize("name", hf_prune.__all__)
def test_every_exported_name_is_defined_where_the_list_says_and_documented(name):
    value = getattr(hf_prune, name)
    assert name in dir(hf_prune)
    assert value.__name__ == name
    text = inspect.getdoc(value)
    assert text
    if inspect.isfunction(value) and inspect.signature(value).parameters:
        shown = set(inspect.signature(value).parameters)
        assert "Args:" in text, f"{name} has no section Args"
        said = set(re.findall(r"^ {4}\*{0,2}(\w+)(?:, \w+)*[ :]", text, flags=re.MULTILINE))
        assert shown <= said, f"{name} does not document {sorted(shown - said)}"


def test_a_name_that_is_not_exported_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'hf_prune' has no attribute 'prunes'"):
        hf_prune.prunes  # noqa: B018


def test_type_checkers_see_every_name_as_exported():
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)  # else it is not re-exported


@pytest.mark.parametrize("module", modules())
def test_no_name_hides_a_module(module):
    found: Any = import_module("hf_prune")
    import_module(module)
    for part in module.split(".")[1:]:
        found = getattr(found, part)
    assert isinstance(found, ModuleType)
    assert found is sys.modules[module]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, hf_prune; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def target(name: str) -> Any:
    """What `hf_prune.a.b.C` is."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def test_cross_references_of_docstrings_point_to_what_there_is():
    names = {name: value for module in modules() for name, value in vars(import_module(module)).items()}
    wrong = []
    for where, text in documented():
        for reference in re.findall(r"\[`~?([\w.]+)(?:\(\))?`\](?!\()", text):
            try:
                first, *rest = reference.split(".")
                if first in names:
                    reduce(getattr, rest, names[first])
                else:
                    target(reference)
            except AttributeError:
                wrong.append(f"{where} refers to {reference}")
    assert not wrong


def test_docstrings_name_no_package_path_that_is_not_there():
    wrong = []
    for where, text in documented():
        for reference in re.findall(r"(?<![\w/`~.])`(hf_prune(?:\.\w+)+)(?:\(\))?`", text):
            try:
                target(reference)
            except AttributeError:
                wrong.append(f"{where} names {reference}")
    assert not wrong


EXAMPLES = [(where, text) for where, text in documented() if ">>>" in text]


def test_examples_are_either_run_or_need_a_training_run():
    assert EXAMPLES
    for where, text in EXAMPLES:
        runs = "import hf_prune" in text
        needs = re.search(r"trainer|trajectory|scored|train\b|pruned|make_trainer|Trainer", text)
        assert runs or needs, f"{where} has an example that is neither run nor about a training run"


@pytest.mark.parametrize(("where", "text"), [one for one in EXAMPLES if "import hf_prune" in one[1]])
def test_examples_that_stand_alone_say_what_happens(where, text):
    test = doctest.DocTestParser().get_doctest(text, {}, where, None, None)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert result.attempted > 0
    assert result.failed == 0
