"""
What recording and scoring cost on the device at hand, at sizes that a CPU cannot measure.

Llamas with random weights and random tokens, all parameters or LoRA, in bfloat16 autocast on CUDA.
`overhead` is training with the recorder over training without it, the median of pairs, each run in a fresh process;
`scoring` is `add_influence` with 64 questions over the recorded training. Memory is the device's peak, or on a CPU the
process's since it began, training included. `agreement` compares influence columns of one small run that this device
recorded, scored by it and by the CPU, as relative distance: what a device gets wrong shows there.

    python benchmarks/accelerator.py --profile full --out benchmarks/results/accelerator.json
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main, peak_memory
from datasets import Dataset
from peft import get_peft_model
from sft import lora
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence


@dataclass(frozen=True)
class Size:
    """A model and a run: `adapters` is the rank of LoRA, 0 for all parameters."""

    name: str
    width: int
    layers: int
    vocabulary: int
    adapters: int
    length: int
    batch: int
    steps: int


PROFILES: dict[str, tuple[int, list[Size]]] = {
    "quick": (1, [Size("tiny", 64, 2, 1000, 0, 32, 4, 6), Size("tiny, LoRA", 64, 2, 1000, 4, 32, 4, 6)]),
    "full": (
        3,
        [
            Size(".1 B", 768, 12, 32_000, 0, 256, 16, 60),
            Size(".1 B, LoRA", 768, 12, 32_000, 16, 256, 16, 60),
            Size("1 B, LoRA", 2048, 20, 49_152, 16, 512, 16, 60),
        ],
    ),
}
HELD_OUT, DIRECTIONS = 16, 64


def model_of(size: Size) -> Any:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64 or 1,
        max_position_embeddings=size.length,
    )
    model = LlamaForCausalLM(config)
    if not size.adapters:
        return model
    return get_peft_model(model, lora(size.adapters, 2 * size.adapters, "q_proj", "v_proj"))


def rows_of(size: Size, count: int, seed: int) -> Dataset:
    ids = np.random.default_rng(seed).integers(0, size.vocabulary, (count, size.length)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def trainer_of(size: Size, directory: Path, *callbacks: Any) -> Trainer:
    device = torch.accelerator.current_accelerator()
    arguments = TrainingArguments(
        str(directory),
        max_steps=size.steps,
        per_device_train_batch_size=size.batch,
        learning_rate=1e-4,
        bf16=device is not None and device.type == "cuda",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    rows = rows_of(size, size.batch * size.steps // 2, 0)
    return Trainer(model_of(size), arguments, train_dataset=rows, callbacks=list(callbacks))


class Measured:
    """
    Seconds of a block, with all that it queued on the device, and the peak of its memory; on a CPU the peak since the
    process began.
    """

    def __enter__(self) -> Measured:
        _finish()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        _finish()
        self.seconds = time.perf_counter() - self.start
        self.peak_mib = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_memory()


def _finish() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def one_run(size: Size, recorded: bool, scored: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "trajectory"
        trainer = trainer_of(size, Path(folder), *([TrajectoryCallback(record)] if recorded else []))
        with Measured() as training:
            trainer.train()
        found = {"train_s": training.seconds, "train_peak_mib": training.peak_mib}
        if scored:
            with Measured() as scoring:
                add_influence(
                    trainer.train_dataset,
                    record,
                    model=trainer.model,
                    eval_dataset=rows_of(size, HELD_OUT, 1),
                    directions=min(DIRECTIONS, len(trainer.train_dataset)),
                )
            found |= {"score_s": scoring.seconds, "score_peak_mib": scoring.peak_mib}
    return found


def agreement() -> list[dict[str, Any]]:
    """Scores of one small run by the device and by the CPU, for both engines."""
    size, rows = PROFILES["quick"][1][0], []
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "trajectory"
        trainer = trainer_of(size, Path(folder), TrajectoryCallback(record))
        trainer.train()
        for engine in ("dense", "projected"):
            columns = []
            for place, device in enumerate((trainer.args.device, torch.device("cpu"))):
                scored = add_influence(
                    trainer.train_dataset,
                    record,
                    model=trainer.model.to(device),
                    eval_dataset=rows_of(size, HELD_OUT, 1),
                    engine=engine,
                    directions=8,
                    batch_size=4 + place,
                )
                columns.append(np.array(scored["influence"]))
                shutil.rmtree(record / "scores")  # nothing of one is found by the other
            distance = float(np.linalg.norm(columns[0] - columns[1]) / np.linalg.norm(columns[1]))
            rows.append({"part": "agreement", "engine": engine, "distance": distance})
    return rows


def child(size: Size, recorded: bool, scored: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", json.dumps([asdict(size), recorded, scored])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The run of {size.name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    pairs, sizes = PROFILES[profile]
    rows, summary = agreement(), {}
    for size in sizes:
        ratios = []
        for pair in range(pairs):
            arms = {recorded: child(size, recorded, False) for recorded in (pair % 2 == 0, pair % 2 == 1)}
            ratios.append(arms[True]["train_s"] / arms[False]["train_s"])
        found = child(size, True, True)
        own = {"overhead": statistics.median(ratios), "scoring": found["score_s"] / found["train_s"]}
        rows.append({"part": "cost", "size": size.name, "pairs": pairs, **own, **found})
        summary |= {f"{figure}_{size.name}": value for figure, value in own.items()}
        print(rows[-1], flush=True)
    return rows, summary


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        own, recorded, scored = json.loads(sys.argv[2])
        print(json.dumps(one_run(Size(**own), recorded, scored)))
    else:
        main("accelerator", run)
