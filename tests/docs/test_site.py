"""The site shows all that is public, and pictures of what was measured."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import hf_prune

ROOT = Path(__file__).parents[2]


def test_the_reference_shows_every_public_name_once():
    shown = re.findall(r"(?m)^::: hf_prune\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(hf_prune.__all__)


def test_the_picture_is_that_of_the_result_file():
    """Draw it again with `python benchmarks/picture.py`."""
    made_of = hashlib.sha256((ROOT / "benchmarks" / "results" / "curves.json").read_bytes()).hexdigest()
    assert made_of in (ROOT / "docs" / "assets" / "gains.svg").read_text(encoding="utf-8")
