"""What the documentation tells a newcomer to do works, line by line as it stands there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.docs.promises import PROMISES
from tests.hub_server import Hub

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_pages_with_code_keep_what_they_promise(tmp_path: Path):
    """One process for all: it imports the libraries once, and does each page in a fork with a directory of its own."""
    with Hub() as hub:
        environment = hub.environment(tmp_path / "home", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        command = [sys.executable, "-m", "tests.docs.run_pages", str(tmp_path), *PROMISES]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-8000:]
    failures = json.loads(done.stdout.splitlines()[-1])
    assert not failures, "\n\n".join(f"{page}: {said}" for page, said in failures.items())


TASKS = {
    "a CSV file of texts": "quickstart.md",
    "a folder of images": "how-to/images.md",
    "a script like run_glue.py": "how-to/text.md",
    "fine-tuning on chats": "how-to/language-models.md",
    "raw rows": "how-to/raw-rows.md",
    "publishing": "how-to/publish.md",
    "measuring by training again": "how-to/verify.md",
    "early stopping": "how-to/early-stopping.md",
    "wrong labels": "how-to/wrong-labels.md",
    "several GPUs": "how-to/several-gpus.md",
    "why the model said something": "how-to/attribution.md",
}


def test_what_newcomers_try_first_has_a_page_that_is_tried():
    index = (DOCS / "index.md").read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(TASKS.values()) <= set(PROMISES)
    assert [page for page in TASKS.values() if f"{page})" not in index] == []


def test_every_page_with_python_is_tried():
    with_code = {
        page.relative_to(DOCS).as_posix()
        for page in [DOCS / "quickstart.md", *(DOCS / "how-to").glob("*.md")]
        if "```python" in page.read_text(encoding="utf-8")
    }
    assert with_code == set(PROMISES)
