"""How rows were scored survives the Hub, whoever pushes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.hub_server import Hub


def test_a_scored_dataset_knows_its_scoring_after_the_hub(tmp_path):
    with Hub() as hub:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.publish.clients.scored"],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            env=hub.environment(tmp_path),
            timeout=180,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {"train": True, "train[:50%]": True, "selection": True}
