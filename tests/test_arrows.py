"""Imports run one way through the package, those inside functions included, and no files import each other in turn."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import hf_prune

ROOT = Path(hf_prune.__file__).parent
ALL = {"errors", "_core"}
TRAINED = ALL | {"trajectory", "optimizers", "model"}
MAY_IMPORT = {
    "errors": set(),
    "_core": set(),
    "logging": set(),
    "trajectory": ALL,
    "optimizers": ALL,
    "model": ALL | {"trajectory", "optimizers"},
    "record": TRAINED,
    "influence": TRAINED,
    "attribution": TRAINED | {"influence"},
    "_estimate": TRAINED | {"record", "influence"},
    "scores": TRAINED | {"influence"},
    "diagnosis": TRAINED | {"influence", "scores"},
    "selection": ALL,
    "publish": TRAINED | {"influence", "selection"},
    "verification": ALL | {"selection", "publish"},
    "report": ALL | {"attribution", "selection", "publish", "verification"},
    "demo": TRAINED | {"record", "influence", "selection", "publish", "verification", "report"},
    "cli": None,
    "testing": None,
}
"""What each part may import beside itself; `None` for everything."""

UPWARD = {
    ("hf_prune.selection.pruned", "hf_prune.publish.methods"),
    ("hf_prune.selection.selection", "hf_prune.selection.pruned"),
    ("hf_prune.selection.selection", "hf_prune.selection.raw"),
}
"""`PrunedDataset` has to have `save_to_disk` and `push_to_hub`, and `Selection.apply` returns a `PrunedDataset`."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(module: str, known: dict[str, Path]) -> Iterator[str]:
    """The package's modules that a module imports, wherever in the file and under whatever condition."""
    package = module.split(".") if known[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(known[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])
            base = base if node.level else node.module or ""
            names = [name if (name := f"{base}.{alias.name}") in known else base for alias in node.names]
            if base == "hf_prune" and all(alias.name == "__version__" for alias in node.names):
                continue
        else:
            continue
        yield from (name for name in names if name in known and name != module)


def arrows() -> dict[str, set[str]]:
    known = modules()
    return {module: {name for name in imports(module, known) if (module, name) not in UPWARD} for module in known}


def test_every_part_imports_only_what_lies_below_it():
    wrong = []
    for module, imported in arrows().items():
        allowed = MAY_IMPORT[part(module)] if module != "hf_prune" else None
        if allowed is not None:
            wrong += [f"{module} imports {name}" for name in imported if part(name) not in {*allowed, part(module)}]
    assert not wrong


def test_no_files_import_each_other_in_turn():
    graph, known = {}, arrows()
    for module, imported in known.items():
        # Importing a module of another part runs that part's __init__ first.
        faces = {f"hf_prune.{part(name)}" for name in imported if part(name) != part(module)}
        graph[module] = (imported | (faces & known.keys())) - {module}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_the_census_sees_late_relative_and_conditional_imports(tmp_path: Path):
    file = tmp_path / "hf_prune" / "room" / "a.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from ..other import b\nfrom .c import name\nif False:\n    import hf_prune.other.d\n"
        "def late():\n    from hf_prune.other import e\n"
    )
    names = ["hf_prune.room.a", "hf_prune.room.c", *(f"hf_prune.other.{letter}" for letter in "bde")]
    assert sorted(imports("hf_prune.room.a", dict.fromkeys(names, file))) == sorted(names[1:])


def test_the_exception_is_still_needed():
    known = modules()
    assert {(module, name) for module, name in UPWARD if name in set(imports(module, known))} == UPWARD
