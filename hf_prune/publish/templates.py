"""Where the card templates and the schema of provenance.json are: `model_cards/`."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from hf_prune.publish import escape


def read(name: str) -> str:
    """Returns the text of a file of `model_cards/`.

    A wheel carries the directory inside the package; in a source checkout it lies next to the package.

    Args:
        name (`str`): file name, such as `"pruned_dataset.md.j2"`.

    Raises:
        `FileNotFoundError`: if neither place has the file: the installation is incomplete.
    """
    inside = resources.files("hf_prune") / "model_cards" / name
    if inside.is_file():
        return inside.read_text(encoding="utf-8")
    checkout = Path(__file__).resolve().parents[2] / "model_cards" / name
    if checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    raise FileNotFoundError(f"hf_prune was installed without model_cards/{name}: install it again from a wheel.")


@cache
def template(name: str) -> Template:
    """Returns a template whose values are escaped for Markdown and HTML unless a filter made them safe."""
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escape.finalize,
    )
    environment.filters |= {
        "code": escape.code,
        "cell": escape.cell,
        "python": escape.python,
        "number": escape.number,
        "safe": escape.Safe,
    }
    return environment.from_string(read(name))


@cache
def schema() -> dict[str, Any]:
    """Returns the JSON Schema (2020-12) of provenance.json."""
    return dict(json.loads(read("provenance.schema.json")))
