"""Run under torchrun: recorded runs of two processes. Usage: two_processes.py DIRECTORY CASE ..."""

import sys
from pathlib import Path

import torch

from tests.record.statistics_truth import train_noting
from tests.scores.test_two_processes import CASES

if __name__ == "__main__":
    for name in sys.argv[2:]:
        kind, case = CASES[name]
        place = Path(sys.argv[1]) / name
        model = train_noting(kind, case, place)
        torch.save(model.notes, place / f"notes-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
