"""
What scoring a MiniLM fine-tuning run costs, in units of the recorded training run, and peak memory beside.

Training is the Trainer with our callback (3 epochs, batch 16, up to 64 tokens or 32, without dropout and with a tenth
as the model was published); scoring is `add_influence` without options: 64 questions and the held-out loss, asked of
64 held-out rows. One thread, the processor's time; each run trains and scores in one fresh process, one after the
other. Where this machine multiplies bfloat16 in hardware, it then scores a copy of the record in full precision: what
bfloat16 changes.
"""

from __future__ import annotations

import json
import shutil
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

# Rows, and the runs' most tokens and dropout.
PROFILES: dict[str, tuple[int, tuple[tuple[int, float], ...]]] = {
    "quick": (64, ((64, 0.0),)),
    "full": (640, ((64, 0.0), (32, 0.0), (64, 0.1))),
}
HELD_OUT = 64


def once(rows: int, tokens: int, dropout: float) -> None:
    """The child process: trains, scores, and prints the seconds and the peak memory after each."""
    torch.set_num_threads(1)
    set_seed(0)
    model, tokenizer = minilm(dropout)
    texts, settings = movie_reviews(rows + HELD_OUT), {"truncation": True, "max_length": tokens}
    reviews = texts.map(lambda row: tokenizer(row["text"], **settings), remove_columns="text")
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
        half = engine.fast_bfloat16(model.device)
        found: dict[str, float] = {"tokens": tokens, "dropout": dropout, "half": half}
        start = time.process_time()
        trainer.train()
        found |= {"train_s": time.process_time() - start, "train_peak_mb": peak_memory()}
        shutil.copytree(record, Path(directory) / "copy")
        start = time.process_time()
        scored = add_influence(train, record, model=model, eval_dataset=held_out)
        found |= {"score_s": time.process_time() - start, "score_peak_mb": peak_memory()}
        found["disk_mb"] = sum(f.stat().st_size for f in (record / "scores").rglob("*") if f.is_file()) / 2**20
        if half:
            engine.fast_bfloat16 = lambda device: False
            start = time.process_time()
            full = add_influence(train, Path(directory) / "copy", model=model, eval_dataset=held_out)
            found["full_precision_s"] = time.process_time() - start
            own, exact = (np.asarray(rows.with_format("numpy")["influence"]) for rows in (scored, full))
            found["difference"] = float(np.linalg.norm(own - exact) / np.linalg.norm(exact))
    print(json.dumps(found))


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    count, runs = PROFILES[profile]
    rows, summary = [], {}
    for tokens, dropout in runs:
        command = [sys.executable, __file__, "--child", str(count), str(tokens), str(dropout)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append(found | {"ratio": found["score_s"] / found["train_s"]})
        name = "score_cost_minilm" + (f"_{tokens}_tokens" if tokens != 64 else "") + ("_dropout" if dropout else "")
        summary[name] = rows[-1]["ratio"]
    return rows, summary


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        once(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    else:
        main("scoring_time", run)
