"""Run under torchrun: one recorded run of two processes. Usage: two_processes.py DIRECTORY"""

import sys
from pathlib import Path

import torch

from tests.influence.test_invariance import recorded_run

if __name__ == "__main__":
    recorded_run(Path(sys.argv[1]), per_device_train_batch_size=4)
    torch.distributed.destroy_process_group()
