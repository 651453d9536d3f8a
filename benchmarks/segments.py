"""
Disk, processor time and memory of scoring by sketches: those of the whole window at once, or of a segment at a time.

A small MLP of two classes is trained for 3 epochs (batch 64, AdamW) with 8 snapshots an epoch; the window is the
default one, so that each row is visited 1.5 times in it. Both ways score the same record with 8 directions, each in a
process of its own; for the second the disk is taken to be small. One thread.

`peak_gb` is the most that lay below `scores/` at any write of sketches or of the sweep's state, the temporary file and
what it replaces included; `written_gb` all that was written; `state_gb` the largest state. `difference` is how far the
two ways' columns lie apart. `*_exponent` is the slope of logarithms over visits.

`1m_*` is extrapolated from the largest run to 1 M rows, sketches of 65,536 dimensions (a small model's are narrower)
and 64 directions: sketches in proportion to the visits, of the window or of its longest segment, and to their width;
the state, of which 8 bytes a row and direction grow, twice. Heads of more classes take up to three times as many.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main, peak_memory
from datasets import ClassLabel, Dataset, Features, List, Value
from safetensors.torch import load_file, save_file
from torch import nn

PROFILES = {"quick": (1_000, 3_000), "full": (10_000, 30_000), "long": (10_000, 30_000, 100_000)}
EPOCHS, WINDOW, SNAPSHOTS, BATCH = 3, 0.5, 8, 64
FEATURES, HIDDEN, DIRECTIONS = 8, 8_192, 8
WAYS = ("at once", "by segments")
MANY_ROWS = 1_000_000


class Mlp(nn.Module):
    """90,114 parameters: more than a sketch has dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def vectors(rows: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    x = ((2 * y[:, None] - 1) / 2 + rng.normal(size=(rows, FEATURES))).astype("float32")
    kinds = Features({"x": List(Value("float32"), length=FEATURES), "labels": ClassLabel(num_classes=2)})
    return Dataset.from_dict({"x": x, "labels": y}, features=kinds)


def arguments(directory: Path) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        str(directory / "out"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )


def record(directory: Path, rows: int) -> None:
    """A child process: trains with a record, and keeps the model."""
    from transformers import Trainer, set_seed

    from hf_prune import TrajectoryCallback

    set_seed(0)
    recorder = TrajectoryCallback(directory / "trajectory", window=WINDOW, snapshots_per_epoch=SNAPSHOTS)
    trainer = Trainer(Mlp(), arguments(directory), train_dataset=vectors(rows, 0), callbacks=[recorder])
    trainer.train()
    save_file(trainer.model.state_dict(), directory / "model.safetensors")


def score(directory: Path, rows: int, way: str) -> None:
    """A child process: scores, and prints what it took; the columns go to a file."""
    from hf_prune import add_influence
    from hf_prune.influence import cache
    from hf_prune.influence.sketch import segments

    model, scores, save, taken = Mlp(), directory / "trajectory" / "scores", cache._save, Taken()
    model.load_state_dict(load_file(directory / "model.safetensors"))
    if way == WAYS[1]:
        segments.KEPT_SHARE = 0.0

    def watched(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        save(tensors, file, metadata)
        size = file.stat().st_size
        taken.width = next((v.shape[1] for key, v in tensors.items() if key.endswith(".sketches")), taken.width)
        taken.written += size
        taken.state = max(taken.state, size if file.name.startswith("effects-") else 0)
        taken.peak = max(taken.peak, bytes_below(scores))

    cache._save = watched
    train, held_out = vectors(rows, 0), vectors(64, 1)
    cpu, wall = time.process_time(), time.perf_counter()
    scored = add_influence(
        train,
        directory / "trajectory",
        model=model,
        eval_dataset=held_out,
        directions=DIRECTIONS,
        engine="projected",
    )
    found = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "memory_mib": peak_memory()}
    found |= {"width": taken.width}
    found |= {f"{name}_gb": getattr(taken, name) / 1e9 for name in ("peak", "written", "state")}
    np.save(directory / f"{way}.npy", np.asarray(scored.with_format("numpy")["influence"]))
    print(json.dumps(found))


@dataclass
class Taken:
    """Bytes of intermediate results, and the dimensions of a sketch."""

    peak: int = 0
    written: int = 0
    state: int = 0
    width: int = 0


def bytes_below(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*.safetensors"))


def child(directory: Path, rows: int, task: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(directory), str(rows), task]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1]) if task in WAYS else {}


def longest(directory: Path) -> tuple[int, int]:
    """Visits of the window, and of its longest segment."""
    from hf_prune import Trajectory

    trajectory = Trajectory.open(directory / "trajectory")
    visits = [
        sum(len(trajectory.step(t).ids) for t in range(first, last))
        for first, last in pairwise(trajectory.snapshot_steps)
    ]
    return sum(visits), max(visits)


def measure(visits: int) -> list[dict[str, Any]]:
    """One row for each way."""
    rows = round(visits / (EPOCHS * WINDOW))
    with tempfile.TemporaryDirectory() as name:
        directory, found = Path(name), []
        child(directory, rows, "record")
        sizes = dict(zip(("visits", "segment_visits"), longest(directory), strict=True))
        for way in WAYS:
            found.append({"rows": rows, **sizes, "way": way, **child(directory, rows, way)})
            shutil.rmtree(directory / "trajectory" / "scores")
        whole, own = (np.load(directory / f"{way}.npy") for way in WAYS)
        found[1]["difference"] = float(np.linalg.norm(own - whole) / np.linalg.norm(whole))
    return found


def of_many_rows(whole: dict[str, Any], parts: dict[str, Any]) -> dict[str, float]:
    """Disk of 1 M rows, in GB."""
    from hf_prune.influence.sketch.engine import WIDTH
    from hf_prune.influence.sketch.window_pass import step_bytes

    own, wide = (step_bytes(BATCH, width) / BATCH for width in (whole["width"], WIDTH))
    ratio = 1e9 * whole["peak_gb"] / whole["visits"] / own
    window = 1e-9 * ratio * wide * EPOCHS * WINDOW * MANY_ROWS
    narrow = parts["state_gb"] / (DIRECTIONS + 1) - 8e-9 * parts["rows"]
    state = 2 * 65 * (narrow * WIDTH / whole["width"] + 8e-9 * MANY_ROWS)
    return {
        "bytes_over_computed": ratio,
        "1m_gb": window,
        "1m_by_segments_gb": window * parts["segment_visits"] / parts["visits"] + state,
        "1m_state_gb": state,
    }


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    found = [row for visits in PROFILES[profile] for row in measure(visits)]
    return found, summary_of(found)


def summary_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    whole, parts = ([row for row in found if row["way"] == way] for way in WAYS)
    summary: dict[str, Any] = of_many_rows(whole[-1], parts[-1])
    for name, rows in (("", whole), ("_by_segments", parts)):
        for key in ("peak_gb", "written_gb", "cpu_s", "memory_mib"):
            logs = [np.log([row[column] for row in rows]) for column in ("visits", key)]
            summary[f"{key}{name}_exponent"] = float(np.polyfit(*logs, 1)[0])
    for key in ("peak_gb", "written_gb", "cpu_s"):
        summary[f"{key}_ratio"] = parts[-1][key] / whole[-1][key]
    summary["most_difference"] = max(row["difference"] for row in parts)
    return summary


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        torch.set_num_threads(1)
        place, rows, task = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
        record(place, rows) if task == "record" else score(place, rows, task)
    else:
        main("segments", run, PROFILES)
