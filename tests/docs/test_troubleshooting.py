"""The sentences that the documentation explains are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SENTENCES = re.findall(r"(?m)^> (.+)$", PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def said() -> list[str]:
    """All texts of the package, with … for what is put in."""
    found = []
    for file in (ROOT / "hf_prune").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_there_are_sentences():
    assert len(SENTENCES) > 25


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_one_that_the_package_says(sentence: str, said: list[str]):
    """Each … of the page stands for what the code puts in, and for no words of its own."""
    assert [text for text in said if sentence in re.sub(r"…[.…]*…", "…", text)]
