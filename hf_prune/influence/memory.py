"""How much memory this process may take for a sweep by default."""

from __future__ import annotations

import psutil
import torch
from accelerate.utils.environment import get_int_from_env

# What torchrun, MPI and Slurm call the number of processes on this machine.
_PROCESSES_HERE = [
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
]


def free_memory(device: torch.device) -> int:
    """
    Bytes that are free where the model is, on the GPU or in the machine.

    Processes of one launch share them: each has an even part of its machine's memory, or of its GPU's where there are
    more processes than GPUs.
    """
    processes = get_int_from_env(_PROCESSES_HERE, 1)
    if device.type != "cuda":
        return psutil.virtual_memory().available // processes
    on_one = -(-processes // torch.cuda.device_count())
    # CUDA counts memory that torch keeps for reuse as taken.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] // on_one + kept
