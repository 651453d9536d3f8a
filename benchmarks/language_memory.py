"""
What scoring a language model takes beside its recorded training run: processor seconds and peak memory.

A small Llama with LoRA is trained for an epoch by trl's SFTTrainer on chats of unequal length, answers labelled, and
scored with 16 questions asked of 4 held-out rows, for several vocabularies, lengths and accumulations. One thread; a
row of the table trains and scores in one fresh process, one after the other, and gives its memory's growth in both.
What a run takes once, however long it is (checks, calibration), is most of it in runs as short as these.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main, peak_memory
from datasets import Dataset
from sft import ids_alone, llama, lora, sft

MICRO_BATCH, RANK, DIRECTIONS = 2, 16, 16
SMALL, MIDDLE, LARGE = 1024, 8192, 49152
# Vocabulary, length, accumulation and optimizer steps.
PROFILES = {
    "quick": [(SMALL, 64, 4, 6), (MIDDLE, 64, 4, 6)],
    "full": [
        (SMALL, 64, 4, 12),
        (MIDDLE, 64, 4, 12),
        (LARGE, 64, 1, 24),
        (LARGE, 64, 4, 12),
        (LARGE, 256, 4, 8),
    ],
}
MIB = 1 << 20


def chats(rows: int, vocabulary: int, length: int) -> Dataset:
    """Token ids of questions and answers, between half of the length and all of it, with labels on the answers."""
    rng, found = np.random.default_rng(0), []
    for size in rng.integers(length // 2, length + 1, rows):
        ids = rng.integers(5, vocabulary, size)
        found.append({"input_ids": ids.tolist(), "labels": np.where(np.arange(size) < size // 3, -100, ids).tolist()})
    found[0] = {"input_ids": [5] * length, "labels": [5] * length}
    return Dataset.from_list(found)


def rss() -> float:
    """Memory of this process now, in MiB; its peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return float(line.split()[1]) / 1024


def measured(work: Any) -> tuple[dict[str, float], Any]:
    """Processor seconds, wall seconds and growth of memory in MiB of a call, and what it returned."""
    before, cpu, wall = rss(), time.process_time(), time.perf_counter()
    result = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "mib": peak_memory() - before}, result


def once(vocabulary: int, length: int, accumulation: int, steps: int) -> None:
    """The child process: trains, scores, and prints what each took."""
    from transformers import set_seed

    from hf_prune import TrajectoryCallback, add_influence, estimate

    torch.set_num_threads(1)
    set_seed(0)
    rows = chats(steps * accumulation * MICRO_BATCH, vocabulary, length)
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "trajectory"
        trainer = sft(
            llama(vocabulary, length),
            directory,
            rows,
            ids_alone(),
            TrajectoryCallback(record),
            settings={
                "num_train_epochs": 1,
                "per_device_train_batch_size": MICRO_BATCH,
                "gradient_accumulation_steps": accumulation,
                "learning_rate": 1e-3,
                "max_length": length,
                "dataset_kwargs": {"skip_prepare_dataset": True},
                "seed": 0,
            },
            eval_dataset=chats(4, vocabulary, length),
            peft_config=lora(RANK, RANK, "q_proj", "v_proj"),
        )
        told = estimate(trainer.model, trainer.args, len(rows), directions=DIRECTIONS)
        train, _ = measured(trainer.train)
        settings = {
            "model": trainer.model,
            "eval_dataset": trainer.eval_dataset,
            "data_collator": trainer.data_collator,
            "directions": DIRECTIONS,
            "engine": "projected",
        }
        score, _ = measured(lambda: add_influence(trainer.train_dataset, record, **settings))
    found = {f"train_{name}": value for name, value in train.items()}
    found |= {f"score_{name}": value for name, value in score.items()}
    print(json.dumps(found | {"estimated_mib": told.scoring_memory_bytes / MIB}))


def child(*case: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *map(str, case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def row(vocabulary: int, length: int, accumulation: int, steps: int, found: dict[str, float]) -> dict[str, Any]:
    """A row of the table."""
    return {
        "vocabulary": vocabulary,
        "length": length,
        "accumulation": accumulation,
        "steps": steps,
        "logits_of_a_step_mib": 4 * MICRO_BATCH * accumulation * length * vocabulary / MIB,
        **found,
        "cpu": found["score_cpu_s"] / found["train_cpu_s"],
        "memory": found["score_mib"] / found["train_mib"],
        "estimate": found["estimated_mib"] / found["score_mib"],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst of the largest vocabulary."""
    vocabulary = max(row["vocabulary"] for row in rows)
    largest = [row for row in rows if row["vocabulary"] == vocabulary]
    most = {f"most_{name}": max(row[name] for row in largest) for name in ("cpu", "memory")}
    return {"vocabulary": vocabulary, **most}


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = [row(*case, child(*case)) for case in PROFILES[profile]]
    return rows, summary(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        once(*map(int, sys.argv[2:6]))
    else:
        main("language_memory", run)
