"""What a device lacks is not asked of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hf_prune._core.devices import widest_float
from hf_prune.influence.memory import free_memory

CODE = Path(__file__).parents[2] / "hf_prune"


def test_only_the_cpu_and_devices_with_float64_are_asked_for_it() -> None:
    assert widest_float(torch.device("cpu")) == widest_float(torch.device("cuda")) == torch.float64
    assert widest_float(torch.device("mps")) == torch.float32
    off = [
        f"{file.name}: {line.strip()}"
        for file in CODE.rglob("*.py")
        if "testing" not in file.parts
        for line in file.read_text().splitlines()
        if re.search(r"(?<!\.cpu\(\))\.double\(\)", line)
    ]
    assert not off


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"])
def test_processes_of_a_machine_share_its_memory_whatever_started_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = free_memory(torch.device("cpu"))
    monkeypatch.setenv(name, "4")
    assert free_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)
