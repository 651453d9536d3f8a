"""
Fine-tuning all of MiniLM on movie reviews, on subsets that each method keeps: a small, noisy task that is really
fine-tuned, where the studies on frozen features stop short.

A seed deals out rows, makes its own recorded run with the real Trainer, and draws every subset and retraining. Test
rows are the same for all seeds. `probed` is what a probe takes, with dev rows of its own. `gain` is over random rows
of the same seed; its interval is Student's t over seeds. It runs on a GPU where there is one.

    python benchmarks/finetune.py --profile full --jobs 6 --out results/finetune.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from common import main, minilm, movie_reviews
from curves import half_width
from datasets import Dataset
from study_tasks import TEST
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_prune import Probe, TrajectoryCallback, add_influence, add_scores, select

TOKENS = 32
METHODS = ("influence", "random", "el2n", "aum", "ccs", "herding", "stratified")
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"train": 96, "held_out": 64, "dev": 64, "test": 100, "epochs": 1, "seeds": 1, "rates": (0.5,)},
    "full": {
        "train": 1_500,
        "held_out": 300,
        "dev": 1_000,
        "test": 2_000,
        "epochs": 3,
        "seeds": 6,
        "rates": (0.5, 0.7),
    },
}
FIRST_SEED = 9000


def encoded(rows: Dataset, tokenizer: Any) -> Dataset:
    return rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=TOKENS), remove_columns="text")


def untrained(rows: Dataset, tokenizer: Any, epochs: int, seed: int, directory: Path, *callbacks: Any) -> Trainer:
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
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
    )
    model, _ = minilm(dropout=0.1)
    collator = DataCollatorWithPadding(tokenizer)
    return Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=list(callbacks))


def trained(trainer: Trainer) -> Trainer:
    trainer.train()
    return trainer


def accuracy(trainer: Trainer, rows: Dataset) -> float:
    output = trainer.predict(rows)
    return float((output.predictions.argmax(axis=1) == output.label_ids).mean())


def one_seed(settings: dict[str, Any], seed: int) -> tuple[dict[Any, float], dict[float, str]]:
    """Accuracy on the test rows by rate and method, and what the probe took at each rate."""
    torch.set_num_threads(1)
    _, tokenizer = minilm()
    reviews = encoded(movie_reviews(10_000, TEST), tokenizer)
    test, pool = reviews.select(range(settings["test"])), reviews.select(range(settings["test"], len(reviews)))
    order = np.random.default_rng(seed).permutation(len(pool))
    sizes = np.cumsum([settings["train"], settings["held_out"], settings["dev"]])
    train, held_out, dev = (pool.select(part) for part in np.split(order[: sizes[-1]], sizes[:-1]))
    taken: dict[float, str] = {}
    found: dict[Any, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        record = TrajectoryCallback(Path(folder) / "trajectory", row_statistics=True)
        trainer = trained(untrained(train, tokenizer, settings["epochs"], seed, Path(folder) / "full", record))
        found[0.0, "full"] = accuracy(trainer, test)
        shared = {"model": trainer.model, "data_collator": trainer.data_collator}
        scored = add_influence(train, Path(folder) / "trajectory", eval_dataset=held_out, **shared)
        scored = add_scores(scored, Path(folder) / "trajectory")

        def fresh(rows: Dataset, seed: int) -> Trainer:
            return untrained(rows, tokenizer, settings["epochs"], seed, Path(folder) / "less")

        probe = Probe(fresh, dev)
        for rate in settings["rates"]:
            selections = {method: select(scored, 1 - rate, method=method, seed=seed) for method in METHODS}
            selections["probed"] = select(scored, 1 - rate, probe=probe, seed=seed)
            evidence = selections["probed"].certificate.evidence
            assert evidence is not None
            taken[rate] = evidence.chosen
            for method, selection in selections.items():
                again = trained(fresh(train.select(selection.keep_indices), seed + 1))
                found[rate, method] = accuracy(again, test)
            print({name: value for name, value in found.items() if name[0] == rate}, taken[rate], flush=True)
    return found, taken


def run(profile: str, jobs: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = PROFILES[profile]
    seeds = range(FIRST_SEED, FIRST_SEED + settings["seeds"])
    results = joblib.Parallel(jobs)(joblib.delayed(one_seed)(settings, seed) for seed in seeds)
    tables = [table for table, _ in results]
    rows = []
    for rate, method in tables[0]:
        values = [table[rate, method] for table in tables]
        row: dict[str, Any] = {"rate": rate, "method": method, "accuracy": float(np.mean(values)), "seeds": values}
        if rate > 0:
            gains = np.array([table[rate, method] - table[rate, "random"] for table in tables])
            row |= {"gain": float(gains.mean()), "gain_interval": half_width(gains)}
        if method == "probed":
            row["taken"] = [taken[rate] for _, taken in results]
        rows.append(row)
    return rows, {f"{row['method']}_{row['rate']:g}": row["accuracy"] for row in rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    known, sys.argv[1:] = parser.parse_known_args()
    main("finetune", partial(run, jobs=known.jobs))
