"""The notebooks run offline from the first cell to the last, and are kept as Colab wants them."""

from __future__ import annotations

import ast
import hashlib
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.figures import FIGURE, number

HOME = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(HOME.glob("*.ipynb"))
PROJECT = tomllib.loads((HOME.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository", "https://github.com/hf-prune/hf-prune")
notebooks = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def read(notebook: Path) -> nbformat.NotebookNode:
    return nbformat.read(notebook, as_version=4)


def outputs(run: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in run.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_promised_notebooks_are_there():
    names = ["01_quickstart_text", "02_images", "03_llm_lora", "04_publish_and_replay", "05_find_mislabelled_rows"]
    assert [path.stem for path in NOTEBOOKS] == [*names, "06_why_did_it_say_that"]


@notebooks
def test_it_runs_offline_and_prunes(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel shows pictures inline, as Jupyter does
    # the notebook about publishing looks for the tests' Hub from where it runs
    (tmp_path / "tests").symlink_to(Path(__file__).parent)
    run = read(notebook)
    NotebookClient(run, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for output in outputs(run)]
    if notebook.stem != "06_why_did_it_say_that":
        assert any("Kept" in data.get("text/html", "") for data in shown), "no selection is shown"
    if notebook.stem != "04_publish_and_replay":
        assert any("image/png" in data for data in shown), "no picture is shown"


@notebooks
def test_it_begins_with_badge_and_installation_for_colab(notebook: Path):
    title, install, *rest = read(notebook).cells
    assert title.source.startswith("# ")
    place = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
    assert f"({place}/blob/main/notebooks/{notebook.name})" in title.source
    assert "colab-badge.svg" in title.source
    assert "if IN_COLAB:\n    !pip install" in install.source
    switches = [line for cell in rest for line in cell.source.splitlines() if line.endswith(" = IN_COLAB")]
    assert len(switches) == 1, "one switch between the Hub and what packages carry"


@notebooks
def test_no_notebook_finds_raw_rows_by_position(notebook: Path):
    cells = [cell.source for cell in read(notebook).cells if cell.cell_type == "code"]
    assert not [source for source in cells if "select(pruned.selection.keep_indices" in source]


@notebooks
def test_outputs_are_kept_and_are_of_this_code(notebook: Path):
    found = read(notebook)
    code = "\n".join(cell.source for cell in found.cells if cell.cell_type == "code")
    made = found.metadata.get("hf_prune", {}).get("code")
    assert made == hashlib.sha256(code.encode()).hexdigest(), "run: python notebooks/execute.py"
    assert not [output for output in outputs(found) if output.output_type == "error"]
    kinds = {kind for output in outputs(found) for kind in output.get("data", {})}
    assert "text/html" in kinds
    assert notebook.stem == "04_publish_and_replay" or "image/png" in kinds
    assert notebook.stat().st_size < 1_000_000


@notebooks
def test_numbers_in_words_are_those_of_its_cells(notebook: Path):
    """What is said beside the cells is in their code, or in what they printed."""
    found = read(notebook)
    shown = [text for output in outputs(found) for text in (output.get("text"), *output.get("data", {}).values())]
    known = [cell.source for cell in found.cells if cell.cell_type == "code"]
    numbers = {number(n[0]) for text in (*known, *filter(None, shown)) for n in FIGURE.finditer(str(text))}
    words = "\n".join(cell.source for cell in found.cells if cell.cell_type == "markdown")
    words = re.sub(r"\]\([^)]*\)|`[^`]*`|(?m:^\d+\. )", "", words)
    assert [n[0] for n in FIGURE.finditer(words) if number(n[0]) not in numbers] == []


@notebooks
def test_what_it_measures_is_measured_with_three_seeds_or_more(notebook: Path):
    code = "\n".join(cell.source for cell in read(notebook).cells if cell.cell_type == "code")
    asked = [int(count) for count in re.findall(r"seeds=(\d+)", code)]
    asked += [len(seeds.split(",")) for seeds in re.findall(r"for seed in \(([\d, ]+)\)", code)]
    assert asked
    assert min(asked) >= 3


@notebooks
def test_code_is_python_beside_the_installation(notebook: Path):
    cells = [cell.source for cell in read(notebook).cells if cell.cell_type == "code"]
    for source in cells[1:]:
        ast.parse(source)
