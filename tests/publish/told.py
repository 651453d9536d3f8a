"""Clients of a Hub, in a process of their own: the libraries read their endpoint when they are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub_server import Hub

ROOT = Path(__file__).parents[2]


def told_by(module: str, hub: Hub, home: Path, *arguments: str, given: str = "") -> dict[str, Any]:
    """What a script of clients prints, run with these arguments and `given` as its input."""
    ran = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        input=given,
        capture_output=True,
        text=True,
        env=hub.environment(home),
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told
