"""One verbosity reaches every module of the package, and an application's own logging holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_prune
from hf_prune.logging import set_verbosity

ROOT = Path(hf_prune.__file__).parent
LOGGING = [file for file in sorted(ROOT.rglob("*.py")) if "logger = " in file.read_text(encoding="utf-8")]

SCRIPT = """
import logging, sys
import hf_prune.logging
{setup}
for level in ("debug", "info", "warning", "error"):
    getattr(logging.getLogger("hf_prune.publish.push"), level)("told at %s", level)
"""


def told(setup: str) -> tuple[list[str], str]:
    """The levels that a fresh process shows on stderr, and all that it shows there."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(setup=setup)], capture_output=True, text=True, check=True
    )
    return [line.split()[-1] for line in done.stderr.splitlines()], done.stderr


@pytest.mark.parametrize(
    ("verbosity", "levels"),
    [
        ("'debug'", ["debug", "info", "warning", "error"]),
        ("'info'", ["info", "warning", "error"]),
        ("logging.ERROR", ["error"]),
        (None, ["warning", "error"]),
    ],
)
def test_messages_are_shown_from_the_chosen_level_on(verbosity: str | None, levels: list[str]):
    assert told(f"hf_prune.logging.set_verbosity({verbosity})" if verbosity else "")[0] == levels


def test_an_applications_own_logging_gets_each_message_once():
    setup = "logging.basicConfig(format='mine: %(message)s'); hf_prune.logging.set_verbosity('info')"
    levels, text = told(setup)
    assert levels == ["info", "warning", "error"]
    assert all(line.startswith("mine: ") for line in text.splitlines())


def test_setting_it_twice_shows_a_message_once():
    twice = "hf_prune.logging.set_verbosity('info'); hf_prune.logging.set_verbosity('error')"
    assert told(twice)[0] == ["error"]


def test_an_unknown_verbosity_is_refused():
    with pytest.raises(ValueError, match="no verbosity 'loud'"):
        set_verbosity("loud")


@pytest.mark.parametrize("file", LOGGING, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_logs_under_its_own_name(file: Path):
    """A logger of another library would not listen to this package's verbosity."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    made = [ast.unparse(node.value) for node in assigned if ast.unparse(node.targets[0]) == "logger"]
    assert made == ["logging.getLogger(__name__)"]
    imported = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert "import logging" in imported


def test_the_modules_that_log_are_found():
    assert len(LOGGING) > 8
