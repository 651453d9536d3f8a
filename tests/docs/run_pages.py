"""Runs the code of pages as it stands, each in a fork with its own directory. Usage: run_pages DIRECTORY PAGE..."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401  what pages import, forks have then
import transformers  # noqa: F401
import trl  # noqa: F401

import hf_prune.influence
import hf_prune.publish.push
import hf_prune.verification  # noqa: F401
from tests.docs import world
from tests.docs.promises import PROMISES
from tests.forks import ended, fork

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"))


def script(page: Path) -> str:
    """All Python of a page, after that of the page that it says it goes on from."""
    before = re.search(r"goes on from .*?\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    start = script((page.parent / before[1]).resolve()) if before else ""
    return start + "\n".join(blocks(page, "python"))


def commands(page: Path) -> str:
    lines = "\n".join(blocks(page, "bash")).splitlines()
    return "\n".join(line for line in lines if not line.startswith("pip install"))


def follow(page: Path, home: Path) -> None:
    """Does what a reader does who copies all of it, script and commands, and looks for what was promised."""
    os.chdir(home)
    Path("train.py").write_text(script(page))
    found: dict[str, Any] = {"__name__": "__main__"}
    if "train.py" not in commands(page):
        exec(compile(script(page), "train.py", "exec"), found)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(["bash", "-e", "-c", commands(page)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "Error" in line)
    PROMISES[page.relative_to(DOCS).as_posix()](found)


def main(directory: Path, pages: list[str]) -> None:
    world.make(directory / "world")
    failures = {}
    for name in pages:
        home = directory / name.replace("/", "-")
        shutil.copytree(directory / "world", home)
        output = home / "output.txt"

        def work(name: str = name, home: Path = home, output: Path = output) -> None:
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                follow(DOCS / name, home)

        if ended(fork(work)):
            failures[name] = output.read_text()[-3000:]
    print(json.dumps(failures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
