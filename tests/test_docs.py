"""Files and tests that the documents name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "PAPER_INDEX.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
)
MADE = {"provenance.json", "hf_prune/provenance.json", "run_glue.py", "train.py"}
"""Files that the package writes, and scripts of a reader's own."""


@pytest.fixture(scope="module")
def files() -> set[str]:
    folders = ("hf_prune", "tests", "benchmarks", "docs", "model_cards", "notebooks", "space")
    found = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")}
    return found | {path.name for path in ROOT.iterdir()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_are_there(document, files):
    named = re.findall(r"`([\w./-]+\.(?:py|md|j2|json))(?:: [\w.]+)?`", (ROOT / document).read_text(encoding="utf-8"))
    assert named or document.startswith("docs/")
    known = [f"/{file}" for file in files]
    missing = {name for name in named if name not in MADE and not any(file.endswith(f"/{name}") for file in known)}
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tests_that_a_document_names_are_there(document):
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / document).read_text(encoding="utf-8")))
    assert not [name for name in named if f"def {name}(" not in written]


def test_functions_that_the_paper_index_names_are_there():
    for file, name in re.findall(r"`([\w/]+\.py): ([\w.]+)`", (ROOT / "PAPER_INDEX.md").read_text(encoding="utf-8")):
        text = (ROOT / "hf_prune" / file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"\b(def|class) {part}\b|^{part} =", text, flags=re.MULTILINE), f"{file}: {name}"
