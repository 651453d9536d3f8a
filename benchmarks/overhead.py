"""
Training time with the recorder over training time without it, in pairs, and peak memory beside.

Both arms train the same model on the same rows in the same order; the arm that goes first alternates by pair.
Each arm is a fresh process, so that its peak memory is its own. Time is that of `trainer.train()`.

`--profile processes` trains the ViT in two processes, by DDP and by FSDP2 over gloo, and tells the processor time of
both beside the wall time, which other work on the machine changes more.
"""

from __future__ import annotations

import json
import os
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
    "processes": {"pairs": 3, "vit": 16},
}
MODELS = ("vit", "minilm")
ROOT = Path(__file__).parents[1]
# How two processes train, and what the Trainer is told of it.
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["ViTLayer"]}},
}


def trainer_for(name: str, size: int, callbacks: list[Any], directory: str, settings: dict[str, Any]) -> Any:
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
        **settings,
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


def one_run(name: str, recorded: bool, size: int, directory: str, way: str) -> None:
    """A child process: trains once; the main one prints seconds, peak memory and the record's size."""
    from hf_prune import TrajectoryCallback

    if way:
        begin_together()
    record = Path(directory) / "trajectory"
    callbacks = [TrajectoryCallback(record)] if recorded else []
    trainer = trainer_for(name, size, callbacks, directory, WAYS.get(way, {}))
    start, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    figures = {
        "seconds": seconds,
        "cpu_s": summed(cpu) if way else cpu,
        "peak_mb": peak_memory(),
        "record_mb": sum(file.stat().st_size for file in record.rglob("*") if file.is_file()) / 2**20,
        "steps": trainer.state.global_step,
    }
    if trainer.is_world_process_zero():
        print(json.dumps(figures), flush=True)
    if way:
        os._exit(0)  # threads of gloo may wait for each other when the interpreter ends


def begin_together() -> None:
    """Joins the processes of this launch, and lets accelerate shard on the CPU."""
    import torch.distributed as dist

    from tests.record.sharded import allow_on_cpu

    allow_on_cpu()
    dist.init_process_group("gloo")


def summed(seconds: float) -> float:
    """The seconds of both processes."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def child(name: str, recorded: bool, size: int, way: str = "") -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if way else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"ACCELERATE_USE_CPU": "true"} if way else {})
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, *launcher, __file__, "--child", name, str(int(recorded)), str(size), directory, way]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"seconds"')))


def run_processes(settings: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pairs of runs by two processes, in turns of the ways, so that other work on the machine falls on all alike."""
    rows: list[dict[str, Any]] = []
    for pair in range(settings["pairs"]):
        for way in WAYS:
            order = (pair % 2 == 0, pair % 2 == 1)
            arms = {recorded: child("vit", recorded, settings["vit"], way) for recorded in order}
            row: dict[str, Any] = {"way": way, "pair": pair, "steps": arms[True]["steps"]}
            for kind in ("seconds", "cpu_s"):
                row |= {f"plain_{kind}": arms[False][kind], f"recorded_{kind}": arms[True][kind]}
                row[f"ratio_{kind}"] = arms[True][kind] / arms[False][kind]
            rows.append(row | {"record_mb": arms[True]["record_mb"], "load": os.getloadavg()[0]})
    summary = {}
    for way in WAYS:
        for kind in ("seconds", "cpu_s"):
            ratios = [row[f"ratio_{kind}"] for row in rows if row["way"] == way]
            summary[f"overhead_{way}_{kind}"] = statistics.median(ratios)
    return rows, summary | {"median_load": statistics.median(row["load"] for row in rows)}


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = PROFILES[profile]
    if profile == "processes":
        return run_processes(settings)
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
        one_run(sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]), sys.argv[5], sys.argv[6])
    else:
        main("overhead", run, PROFILES)
