"""
Training time with the recorder over training time without it, in pairs, and peak memory beside.

Both arms train the same model on the same rows in the same order; the arm that goes first alternates by pair.
Each arm is a fresh process, so that its peak memory is its own. Time is that of `trainer.train()`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import main, peak_memory

PROFILES = {
    "quick": {"pairs": 1, "vit": 2, "minilm": 160},  # epochs of the ViT, rows for MiniLM
    "full": {"pairs": 5, "vit": 20, "minilm": 320},
}
MODELS = ("vit", "minilm")


def trainer_for(name: str, size: int, callbacks: list[Any], directory: str) -> Any:
    """A Trainer on real data: digits through a small ViT, or movie reviews through MiniLM."""
    import numpy as np
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(0)
    shared = {
        "output_dir": directory,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 50,
        "seed": 0,
    }
    if name == "vit":
        from common import digits
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            num_labels=10,
        )
        rows = digits()[0].map(
            lambda row: {"pixel_values": np.reshape(row["x"], (1, 8, 8))}, remove_columns=["x", "row"]
        )
        arguments = TrainingArguments(num_train_epochs=size, per_device_train_batch_size=32, **shared)
        return Trainer(ViTForImageClassification(config), arguments, train_dataset=rows, callbacks=callbacks)
    from common import minilm, movie_reviews

    model, tokenizer = minilm()
    rows = movie_reviews(size).map(lambda row: tokenizer(row["text"], truncation=True, max_length=64))
    arguments = TrainingArguments(num_train_epochs=3, per_device_train_batch_size=16, learning_rate=3e-5, **shared)
    return Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks)


def one_run(name: str, recorded: bool, size: int) -> None:
    """The child process: trains once and prints its seconds, peak memory and the record's size."""
    from hf_prune import TrajectoryCallback

    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "trajectory"
        callbacks = [TrajectoryCallback(record)] if recorded else []
        trainer = trainer_for(name, size, callbacks, directory)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in record.rglob("*") if file.is_file())
        peak = peak_memory()
    print(
        json.dumps(
            {"seconds": seconds, "peak_mb": peak, "record_mb": size / 2**20, "steps": trainer.state.global_step}
        )
    )


def child(name: str, recorded: bool, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, str(int(recorded)), str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = PROFILES[profile]
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for name in MODELS:
        ratios, peaks = [], []
        for pair in range(settings["pairs"]):
            arms = {recorded: child(name, recorded, settings[name]) for recorded in (pair % 2 == 0, pair % 2 == 1)}
            ratios.append(arms[True]["seconds"] / arms[False]["seconds"])
            peaks.append(arms[True]["peak_mb"] - arms[False]["peak_mb"])
            rows.append(
                {
                    "model": name,
                    "pair": pair,
                    "steps": arms[True]["steps"],
                    "plain_s": arms[False]["seconds"],
                    "recorded_s": arms[True]["seconds"],
                    "ratio": ratios[-1],
                    "plain_peak_mb": arms[False]["peak_mb"],
                    "recorded_peak_mb": arms[True]["peak_mb"],
                    "record_mb": arms[True]["record_mb"],
                }
            )
        summary[f"overhead_{name}"] = statistics.median(ratios)
        summary[f"extra_peak_mb_{name}"] = statistics.median(peaks)
    return rows, summary


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        one_run(sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))
    else:
        main("overhead", run)
