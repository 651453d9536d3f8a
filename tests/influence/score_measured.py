"""Trains and scores a model of one shape, and prints how far the process's memory grew and what was estimated."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, default_data_collator

from hf_prune import TrajectoryCallback, add_influence, estimate
from tests import toys

DIRECTIONS = 4


def language_model(dtype: torch.dtype, **sizes: int) -> nn.Module:
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, **sizes)
    model = LlamaForCausalLM(config).to(dtype)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def tokens(rows: int, length: int, vocabulary: int) -> Dataset:
    ids = np.random.default_rng(0).integers(2, vocabulary, (rows, length))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
DEEP = {"hidden_size": 128, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 5000}
SHAPES: dict[str, Any] = {
    "vocabulary": (
        lambda: language_model(torch.float32, vocab_size=40_000, **SMALL),
        lambda: tokens(8, 256, 40_000),
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        256,
    ),
    "activations": (
        lambda: language_model(torch.float32, **DEEP),
        lambda: tokens(16, 384, 5000),
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        384,
    ),
    "parameters": (lambda: toys.Mlp(hidden=600_000), lambda: toys.vectors(16), {"learning_rate": 1e-6}, 1),
}


def peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) * 1024


def main(shape: str) -> None:
    torch.set_num_threads(1)
    make, data, settings, length = SHAPES[shape]
    torch.manual_seed(0)
    model, rows = make(), data()
    with tempfile.TemporaryDirectory() as directory:
        args = toys.arguments(directory, **({"num_train_epochs": 2, "learning_rate": 1e-3} | settings))
        told = estimate(model, args, len(rows), directions=DIRECTIONS, length=length)
        recorder, collator = TrajectoryCallback(f"{directory}/t"), default_data_collator
        Trainer(model, args, train_dataset=rows, data_collator=collator, callbacks=[recorder]).train()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        before = peak()
        settings = {"engine": "projected", "directions": DIRECTIONS, "data_collator": collator}
        add_influence(rows, f"{directory}/t", model=model, eval_dataset=rows.select(range(2)), **settings)
    print(json.dumps({"measured": peak() - before, "estimated": told.scoring_memory_bytes}))


if __name__ == "__main__":
    main(sys.argv[1])
