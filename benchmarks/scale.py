"""
Time, memory and quality of selecting half of 10 k, 100 k and 1 M rows (k = 64, 10 classes) on two cores.

Each size is a fresh process, so that its peak memory is its own; to it comes the largest worker's, twice. On a machine
that does other work too, CPU seconds (workers and their start included) tell more than seconds. The rows lie on disk
as `datasets` writes them, and the peak includes the file's mapped pages. Influence is drawn: 200 latent directions of
falling weight, classes with centres of their own, heavy tails over the rows.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import main
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from datasets.arrow_writer import ArrowWriter

K, CLASSES, LATENT = 64, 10, 200
KEEP = 0.5
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"sizes": (10_000, 100_000), "rates": (0.5,)},
    "full": {"sizes": (10_000, 100_000, 1_000_000), "rates": (0.3, 0.5, 0.9)},
}
JOBS = 2
QUALITY_ROWS = 10_000
BUCKETS = 5
"""Buckets of 2,000 rows, a fifth of those that 1 M rows get: harder on the quality than what is used."""


def write(rows: int, directory: str) -> None:
    """Draws a scored dataset and saves it, block by block."""
    features = Features(
        {
            "label": ClassLabel(num_classes=CLASSES), "influence": List(Value("float32"), length=K),
            "influence_norm": Value("float32"), "influence_eval_loss": Value("float32"),
        }
    )  # fmt: skip
    rng = np.random.default_rng(0)
    sketch = rng.normal(size=(LATENT, K)) / np.arange(1, LATENT + 1)[:, None] / K**0.5
    centres = 0.5 * rng.normal(size=(CLASSES, LATENT))
    file = str(Path(directory) / "rows.arrow")
    with ArrowWriter(path=file, features=features) as writer:
        for start in range(0, rows, 10_000):
            size = min(10_000, rows - start)
            label = rng.integers(0, CLASSES, size)
            latent = (centres[label] + rng.normal(size=(size, LATENT))) * np.exp(0.7 * rng.normal(size=(size, 1)))
            influence = (latent @ sketch / rows).astype("float32")
            columns = {
                "label": pa.array(label), "influence": pa.FixedSizeListArray.from_arrays(influence.ravel(), K),
                "influence_norm": pa.array(np.linalg.norm(influence, axis=1)),
                "influence_eval_loss": pa.array(influence[:, 0]),
            }  # fmt: skip
            writer.write_table(pa.table(columns).cast(features.arrow_schema))
        writer.finalize()
    Dataset.from_file(file).save_to_disk(str(Path(directory) / "scored"))


def one_run(directory: str, rate: float, buckets: str) -> None:
    """The child process: selects, and prints seconds, peak memory and the certificate's figures."""
    import joblib
    from joblib.externals.loky import get_reusable_executor

    from hf_prune import select

    rows = load_from_disk(str(Path(directory) / "scored"))
    start, before = time.perf_counter(), time.process_time()
    with joblib.parallel_config(n_jobs=JOBS):
        certificate = select(rows, 1 - rate, buckets=buckets if buckets == "auto" else int(buckets)).certificate
    seconds = time.perf_counter() - start
    get_reusable_executor().shutdown(wait=True)  # what workers used is known when they have ended
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(used.ru_utime + used.ru_stime for used in (own, workers)) - before
    figures = {
        "rows": len(rows), "rate": rate, "buckets": buckets, "seconds": seconds, "cpu_seconds": cpu,
        "peak_gb": own.ru_maxrss / 2**20, "worker_peak_gb": workers.ru_maxrss / 2**20,
        "audit_ratio": certificate.audit_ratio, "audit_residual": certificate.audit_residual,
        "predicted_shift": certificate.predicted_shift,
    }  # fmt: skip
    print(json.dumps(figures))


def child(directory: str, rate: float, buckets: int | str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", directory, str(rate), str(buckets)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def exponent(found: list[dict[str, Any]], key: str) -> float:
    """Slope of the logarithm of the time over that of the rows."""
    return float(np.polyfit(np.log([row["rows"] for row in found]), np.log([row[key] for row in found]), 1)[0])


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = PROFILES[profile]
    found = []
    for size in settings["sizes"]:
        with tempfile.TemporaryDirectory() as directory:
            write(size, directory)
            found.append(child(directory, 1 - KEEP, "auto"))
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        write(QUALITY_ROWS, directory)
        for rate in settings["rates"]:
            one, many = (child(directory, rate, number) for number in (1, BUCKETS))
            ratios.append(many["audit_residual"] / one["audit_residual"])
            found += [one, many]
    largest = found[len(settings["sizes"]) - 1]
    label = {1_000_000: "1m", 100_000: "100k"}[largest["rows"]]
    summary = {
        "exponent": exponent(found[: len(settings["sizes"])], "seconds"),
        "cpu_exponent": exponent(found[: len(settings["sizes"])], "cpu_seconds"),
        f"seconds_{label}": largest["seconds"],
        f"cpu_seconds_{label}": largest["cpu_seconds"],
        f"peak_gb_{label}": largest["peak_gb"] + JOBS * largest["worker_peak_gb"],
        "bucket_ratio": math.exp(np.mean(np.log(ratios))),
        "bucket_ratio_worst": max(ratios),
    }
    return found, summary


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        one_run(sys.argv[2], float(sys.argv[3]), sys.argv[4])
    else:
        main("scale", run)
