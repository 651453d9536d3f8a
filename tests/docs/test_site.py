"""The site shows all that is public."""

from __future__ import annotations

import re
from pathlib import Path

import hf_prune

ROOT = Path(__file__).parents[2]


def test_the_reference_shows_every_public_name_once():
    shown = re.findall(r"(?m)^::: hf_prune\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(hf_prune.__all__)
