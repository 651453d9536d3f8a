"""
Fine-tuning all of MiniLM on movie reviews, on subsets that each method keeps: a small, noisy task that is really
fine-tuned, where the studies on frozen features stop short.

A seed deals out rows, makes its own recorded run with the real Trainer, and draws every subset and retraining. Test
rows are the same for all seeds. `gain` is over random rows of the same seed; its interval is Student's t over seeds.

    python benchmarks/finetune.py --profile full --out results/finetune.json
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main, minilm, movie_reviews
from curves import half_width
from datasets import Dataset
from study_tasks import TEST
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_prune import TrajectoryCallback, add_influence, add_scores, select

TOKENS = 32
METHODS = ("influence", "random", "el2n", "herding", "stratified")
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"train": 96, "held_out": 64, "test": 100, "epochs": 1, "seeds": 1, "rates": (0.5,)},
    "full": {"train": 500, "held_out": 200, "test": 1_000, "epochs": 2, "seeds": 4, "rates": (0.5, 0.7)},
}
FIRST_SEED = 9000


def encoded(rows: Dataset, tokenizer: Any) -> Dataset:
    return rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=TOKENS), remove_columns="text")


def trained(rows: Dataset, tokenizer: Any, epochs: int, seed: int, directory: Path, *callbacks: Any) -> Trainer:
    set_seed(seed)
    arguments = TrainingArguments(
        str(directory),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=128,
        learning_rate=5e-5,
        warmup_steps=0.1,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    model, _ = minilm(dropout=0.1)
    collator = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=list(callbacks))
    trainer.train()
    return trainer


def accuracy(trainer: Trainer, rows: Dataset) -> float:
    output = trainer.predict(rows)
    return float((output.predictions.argmax(axis=1) == output.label_ids).mean())


def one_seed(settings: dict[str, Any], pool: Dataset, test: Dataset, tokenizer: Any, seed: int) -> dict[Any, float]:
    """Accuracy on the test rows by rate and method."""
    order = np.random.default_rng(seed).permutation(len(pool))
    train = pool.select(order[: settings["train"]])
    held_out = pool.select(order[settings["train"] : settings["train"] + settings["held_out"]])
    found: dict[Any, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        record = TrajectoryCallback(Path(folder) / "trajectory", row_statistics=True)
        trainer = trained(train, tokenizer, settings["epochs"], seed, Path(folder) / "full", record)
        found[0.0, "full"] = accuracy(trainer, test)
        shared = {"model": trainer.model, "data_collator": trainer.data_collator}
        scored = add_influence(train, Path(folder) / "trajectory", eval_dataset=held_out, **shared)
        scored = add_scores(scored, Path(folder) / "trajectory")
        for rate in settings["rates"]:
            for method in METHODS:
                kept = select(scored, 1 - rate, method=method, seed=seed).keep_indices
                again = trained(train.select(kept), tokenizer, settings["epochs"], seed + 1, Path(folder) / "less")
                found[rate, method] = accuracy(again, test)
                print(f"seed {seed}, rate {rate}, {method}: {found[rate, method]:.3f}", flush=True)
    return found


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    settings = PROFILES[profile]
    _, tokenizer = minilm()
    reviews = encoded(movie_reviews(8_000, TEST), tokenizer)
    test, pool = reviews.select(range(settings["test"])), reviews.select(range(settings["test"], len(reviews)))
    seeds = range(FIRST_SEED, FIRST_SEED + settings["seeds"])
    tables = [one_seed(settings, pool, test, tokenizer, seed) for seed in seeds]
    rows = []
    for rate, method in tables[0]:
        values = [table[rate, method] for table in tables]
        row: dict[str, Any] = {"rate": rate, "method": method, "accuracy": float(np.mean(values)), "seeds": values}
        if rate > 0:
            gains = np.array([table[rate, method] - table[rate, "random"] for table in tables])
            row |= {"gain": float(gains.mean()), "gain_interval": half_width(gains)}
        rows.append(row)
    return rows, {f"{row['method']}_{row['rate']:g}": row["accuracy"] for row in rows}


if __name__ == "__main__":
    main("finetune", run)
