"""
Processor seconds and peak memory of choosing from a stream of candidates that were never trained on, for a task.

A small Llama with LoRA is trained by trl's SFTTrainer on 64 rows of two kinds; a stream of both kinds is scored with
16 rows of one of them as the task, and a tenth of it is kept by `method="target"`. Memory is what lies in no file
(`RssAnon`), sampled while the pool is scored, beyond what there was after a first pool. One thread. `exponent_cpu_s`
is that of the two largest sizes, and `100k_cpu_s` what follows from it for 100,000 rows: an extrapolation.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from datasets import Dataset, IterableDataset
from sft import ids_alone, llama, lora, sft

VOCABULARY, LENGTH, DIRECTIONS = 256, 24, 16
PROFILES = {"quick": (500, 2_100), "full": (2_100, 4_200, 8_400)}


def rows(count: int, seed: int, kind: int | None = None) -> Iterator[dict[str, Any]]:
    """Sequences that count up, or down (the task); of both kinds where none is asked for."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        own = int(rng.random() < 0.25) if kind is None else kind
        steps = (-1 if own else 1) * np.arange(rng.integers(LENGTH // 2, LENGTH + 1))
        ids = (2 + (rng.integers(VOCABULARY - 2) + steps) % (VOCABULARY - 2)).tolist()
        yield {"input_ids": ids, "labels": ids, "kind": own}


class Peak(threading.Thread):
    """The most memory in no file, in MiB, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ended = 0.0, threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            self.most = max(self.most, memory())
            time.sleep(0.01)


def memory() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024


def trained(directory: str) -> Any:
    from transformers import set_seed

    from hf_prune import TrajectoryCallback

    set_seed(0)
    trainer = sft(
        llama(VOCABULARY, LENGTH),
        directory,
        Dataset.from_list(list(rows(64, seed=0))),
        ids_alone(),
        TrajectoryCallback(f"{directory}/trajectory"),
        settings={
            "num_train_epochs": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        },
        eval_dataset=Dataset.from_list(list(rows(16, seed=1, kind=1))),
        peft_config=lora(16, 16, "q_proj", "v_proj"),
    )
    trainer.train()
    return trainer


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from hf_prune import add_influence, prune

    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as directory:
        trainer = trained(directory)
        for count in (PROFILES[profile][0], *PROFILES[profile]):  # the first one pays for what is made once
            stream = IterableDataset.from_generator(rows, gen_kwargs={"count": count, "seed": 2})
            before, cpu, peak = memory(), time.process_time(), Peak()
            peak.start()
            scored = add_influence(
                stream, f"{directory}/trajectory", train_dataset=trainer, directions=DIRECTIONS, engine="projected"
            )
            peak.ended.set()
            cpu = time.process_time() - cpu
            kept = prune(scored, keep=count // 10, method="target")
            figures = {
                "rows": count,
                "cpu_s": cpu,
                "peak_mib": peak.most - before,
                "of_the_task": np.mean(kept["kind"]),
            }
            found.append({name: float(value) for name, value in figures.items()})
    found = found[1:]
    before, last = found[-2:]
    exponent = float(np.log(last["cpu_s"] / before["cpu_s"]) / np.log(last["rows"] / before["rows"]))
    summary = {
        "most_peak_mib": max(row["peak_mib"] for row in found),
        "exponent_cpu_s": exponent,
        "100k_cpu_s": last["cpu_s"] * (1e5 / last["rows"]) ** exponent,
    }
    return found, summary


if __name__ == "__main__":
    main("pool", run)
