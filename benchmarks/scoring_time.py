"""
What scoring a MiniLM fine-tuning run costs, in units of the recorded training run, and peak memory beside.

Training is the Trainer with our callback (3 epochs, batch 16, up to 64 tokens); scoring is `add_influence` without
options: 64 questions and the held-out loss, asked of 64 held-out rows. One thread, wall time; each repeat trains and
scores in one fresh process, one after the other. It then scores a copy of the record in full precision: what bfloat16
changes, where this machine has it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main, minilm, movie_reviews, peak_memory
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence
from hf_prune.influence.sketch import engine

PROFILES = {"quick": {"rows": 64, "repeats": 1}, "full": {"rows": 640, "repeats": 1}}
HELD_OUT = 64


def once(rows: int) -> None:
    """The child process: trains, scores, and prints the seconds and the peak memory after each."""
    torch.set_num_threads(1)
    set_seed(0)
    model, tokenizer = minilm()
    reviews = movie_reviews(rows + HELD_OUT).map(lambda row: tokenizer(row["text"], truncation=True, max_length=64))
    reviews = reviews.remove_columns("text")
    train, held_out = reviews.select(range(rows)), reviews.select(range(rows, rows + HELD_OUT))
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            directory,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            learning_rate=3e-5,
            warmup_steps=0.1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
        )
        record = Path(directory) / "trajectory"
        trainer = Trainer(
            model, arguments, train_dataset=train, processing_class=tokenizer, callbacks=[TrajectoryCallback(record)]
        )
        found: dict[str, float] = {}
        start = time.perf_counter()
        trainer.train()
        found |= {"train_s": time.perf_counter() - start, "train_peak_mb": peak_memory()}
        shutil.copytree(record, Path(directory) / "copy")
        start = time.perf_counter()
        scored = add_influence(train, record, model=model, eval_dataset=held_out)
        found |= {"score_s": time.perf_counter() - start, "score_peak_mb": peak_memory()}
        found["disk_mb"] = sum(f.stat().st_size for f in (record / "scores").rglob("*") if f.is_file()) / 2**20
        found["half"] = engine.fast_bfloat16(model.device)
        engine.fast_bfloat16 = lambda device: False
        start = time.perf_counter()
        full = add_influence(train, Path(directory) / "copy", model=model, eval_dataset=held_out)
        found["full_precision_s"] = time.perf_counter() - start
        own, exact = (np.asarray(rows.with_format("numpy")["influence"]) for rows in (scored, full))
        found["difference"] = float(np.linalg.norm(own - exact) / np.linalg.norm(exact))
    print(json.dumps(found))


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = []
    for repeat in range(PROFILES[profile]["repeats"]):
        command = [sys.executable, __file__, "--child", str(PROFILES[profile]["rows"])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append({"repeat": repeat, **found, "ratio": found["score_s"] / found["train_s"]})
    return rows, {"score_cost_minilm": statistics.median(row["ratio"] for row in rows)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        once(int(sys.argv[2]))
    else:
        main("scoring_time", run)
