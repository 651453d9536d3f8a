"""Starts a module of the tests in two processes, as torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers.testing_utils import get_torch_dist_unique_port

ROOT = Path(__file__).parents[1]


def launch(module: str, *arguments: Any) -> None:
    """Runs `python -m module ARGUMENTS` in two processes of one launch on the CPU, to their end."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(get_torch_dist_unique_port()),
        "-m",
        module,
        *map(str, arguments),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-12000:]
