"""
Time, memory and quality of selecting half of 10 k to 1 M rows and of 10 M (k = 64, 10 classes) on two cores.

Each size is a fresh process, so that its peak memory is its own. `workers_peak_gb` is the sum over the workers of
each one's own high-water mark, read while they still live (Linux); `peak_gb_*` adds it to that of the process that
calls. Pages that processes share, such as libraries' and the mapped file's, count in each: the machine needs no
more. On a machine that does other work too, CPU seconds (workers and their start included) tell more than seconds.
The rows lie on disk as `datasets` writes them. Influence is drawn: 200 latent directions of falling weight,
classes with centres of their own, heavy tails over the rows.

The default of these rows, which look far from saturated, is herding; `none`, with `difficulty=None`, is the linear
program. Both are measured.

Buckets are of one size, so that beyond the starts of processes work grows with the rows: `a + b n` is fitted to
100 k to 1 M rows, each measured twice, and carried on to 10 M (`*_10m_extrapolated`, with the 95 % interval of what
would be measured). There it is measured once, too (`*_10m`). `*_exponent` is the slope of the logarithms over the same
sizes; it is below 1 for what does not grow. The linear program is measured up to 100 k rows.

`growth_*`: the certificate's `audit_ratio` of the default and of `difficulty=None`, for ever more of the same rows, in
this process. Above 1, a preference moves the unseen directions further than chance does.
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
import psutil
import pyarrow as pa
from common import main, peak_memory
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from datasets.arrow_writer import ArrowWriter
from scipy.optimize import curve_fit
from scipy.stats import t as student

K, CLASSES, LATENT = 64, 10, 200
KEEP = 0.5
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {
        "sizes": (10_000, 30_000, 100_000),
        "program": (10_000, 30_000),
        "fit": 30_000,
        "beyond": 300_000,
        "rates": (0.5,),
    },
    "full": {
        "sizes": (10_000, 100_000, 300_000, 1_000_000),
        "program": (10_000, 100_000),
        "fit": 100_000,
        "beyond": 10_000_000,
        "rates": (0.3, 0.5, 0.9),
    },
}
REPEATS = 2
JOBS = 2
QUALITY_ROWS = 10_000
BUCKETS = 5
"""Buckets of 2,000 rows, a fifth of those that 1 M rows get: harder on the quality than what is used."""

GROWTH = (2_500, 10_000, 40_000)
"""Rows that the preference's share in the audit residual is followed over."""


def write(rows: int, directory: str) -> None:
    """Draws a scored dataset and saves it, block by block."""
    features = Features(
        {
            "label": ClassLabel(num_classes=CLASSES),
            "influence": List(Value("float32"), length=K),
            "influence_norm": Value("float32"),
            "influence_eval_loss": Value("float32"),
        }
    )
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
                "label": pa.array(label),
                "influence": pa.FixedSizeListArray.from_arrays(influence.ravel(), K),
                "influence_norm": pa.array(np.linalg.norm(influence, axis=1)),
                "influence_eval_loss": pa.array(influence[:, 0]),
            }
            writer.write_table(pa.table(columns).cast(features.arrow_schema))
        writer.finalize()
    Dataset.from_file(file).save_to_disk(str(Path(directory) / "scored"))


def one_run(directory: str, rate: float, buckets: str, difficulty: str) -> None:
    """The child process: selects, and prints seconds, peak memory and the certificate's figures."""
    import joblib
    from joblib.externals.loky import get_reusable_executor

    from hf_prune import select

    rows = load_from_disk(str(Path(directory) / "scored"))
    start, before = time.perf_counter(), time.process_time()
    with joblib.parallel_config(n_jobs=JOBS):
        selection = select(
            rows,
            1 - rate,
            buckets=buckets if buckets == "auto" else int(buckets),
            difficulty=None if difficulty == "none" else difficulty,
        )
    certificate = selection.certificate
    seconds = time.perf_counter() - start
    peak, workers_peak = peak_memory(), workers_peak_memory()
    get_reusable_executor().shutdown(wait=True)  # what workers used is known when they have ended
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(used.ru_utime + used.ru_stime for used in (own, workers)) - before
    figures = {
        "rows": len(rows),
        "rate": rate,
        "difficulty": difficulty,
        "buckets": buckets,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gb": peak / 1024,
        "workers_peak_gb": workers_peak / 1024,
        "audit_ratio": certificate.audit_ratio,
        "audit_residual": certificate.audit_residual,
        "predicted_shift": certificate.predicted_shift,
    }
    print(json.dumps(figures))


def workers_peak_memory() -> float:
    """Sum of the living child processes' own marks, in MiB; 0 where the system does not tell them."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        status = Path(f"/proc/{process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        total += sum(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return total


def child(directory: str, rate: float, buckets: int | str, difficulty: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", directory, str(rate), str(buckets), difficulty]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def growth() -> list[dict[str, Any]]:
    """One row for each number of rows."""
    from hf_prune import select

    found = []
    with tempfile.TemporaryDirectory() as directory:
        write(max(GROWTH), directory)
        rows = load_from_disk(str(Path(directory) / "scored"))
        for size in GROWTH:
            part = rows.select(range(size))
            both = {"auto": select(part, KEEP), "none": select(part, KEEP, difficulty=None)}
            ratios = {f"audit_ratio_{name}": chosen.certificate.audit_ratio for name, chosen in both.items()}
            found.append({"rows": size, "rate": 1 - KEEP} | ratios)
    return found


def law(rows: np.ndarray, start: float, each: float) -> np.ndarray:
    """Logarithm of `a + b n`, of the logarithms of both."""
    return np.logaddexp(start, each + np.log(rows))


def extrapolated(found: list[dict[str, Any]], key: str, rows: int) -> tuple[float, float, list[float]]:
    """The exponent, the fitted law's value for so many rows, and the 95 % interval of what would be measured there."""
    sizes, values = (np.array([row[name] for row in found], dtype=float) for name in ("rows", key))
    logs = np.log(values)
    begin = np.log([values.min() / 2, values.max() / sizes.max()])
    fitted, covariance = curve_fit(law, sizes, logs, p0=begin, maxfev=20_000)
    slopes = np.array(
        [(law(rows, *(fitted + step)) - law(rows, *(fitted - step))) / 2e-5 for step in 1e-5 * np.eye(2)]
    )
    freedom = len(sizes) - len(fitted)
    spread = float(((logs - law(sizes, *fitted)) ** 2).sum()) / freedom
    half = float(student.ppf(0.975, freedom)) * math.sqrt(float(slopes @ covariance @ slopes) + spread)
    middle = float(law(rows, *fitted))
    exponent = float(np.polyfit(np.log(sizes), logs, 1)[0])
    return exponent, math.exp(middle), [math.exp(middle - half), math.exp(middle + half)]


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = PROFILES[profile]
    rows, summary = [], {}
    for difficulty, suffix in (("auto", ""), ("none", "_none")):
        found, figures = measure(settings, difficulty)
        rows += found
        summary |= {key + suffix: value for key, value in figures.items()}
    grown = growth()
    summary |= {f"growth_{key}": grown[-1][key] / grown[0][key] for key in ("audit_ratio_auto", "audit_ratio_none")}
    return rows + grown, summary


def measure(settings: dict[str, Any], difficulty: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    sizes, quality, beyond = [], [], settings["beyond"]
    every = (*settings["sizes"], beyond) if difficulty == "auto" else settings["program"]
    for size in every:
        with tempfile.TemporaryDirectory() as directory:
            write(size, directory)
            times = 1 if size == beyond else REPEATS
            sizes += [child(directory, 1 - KEEP, "auto", difficulty) for _ in range(times)]
    with tempfile.TemporaryDirectory() as directory:
        write(QUALITY_ROWS, directory)
        for rate in settings["rates"]:
            quality.append([child(directory, rate, number, difficulty) for number in (1, BUCKETS)])
    return sizes + [row for pair in quality for row in pair], summary_of(settings, sizes, quality)


def summary_of(
    settings: dict[str, Any], sizes: list[dict[str, Any]], quality: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    """What a difficulty comes to, extrapolated where there is a size beyond those of the fit."""
    for row in sizes:
        row["all_peak_gb"] = row["peak_gb"] + row["workers_peak_gb"]
    ratios = [many["audit_residual"] / one["audit_residual"] for one, many in quality]
    figures: dict[str, Any] = {"bucket_ratio": math.exp(np.mean(np.log(ratios))), "bucket_ratio_worst": max(ratios)}
    beyond = settings["beyond"]
    fit = [row for row in sizes if settings["fit"] <= row["rows"] < beyond]
    for name, key in (("seconds", "seconds"), ("cpu_seconds", "cpu_seconds"), ("peak_gb", "all_peak_gb")):
        for size in sorted({row["rows"] for row in sizes}):
            figures[f"{name}_{label(size)}"] = float(np.mean([row[key] for row in sizes if row["rows"] == size]))
        if sizes[-1]["rows"] == beyond:
            exponent, value, interval = extrapolated(fit, key, beyond)
            figures |= {
                f"{name}_exponent": exponent,
                f"{name}_{label(beyond)}_extrapolated": value,
                f"{name}_{label(beyond)}_interval": interval,
            }
    for size in sorted({row["rows"] for row in sizes}):
        figures[f"audit_ratio_{label(size)}"] = next(row["audit_ratio"] for row in sizes if row["rows"] == size)
    return figures


def label(rows: int) -> str:
    return f"{rows // 1_000_000}m" if rows >= 1_000_000 else f"{rows // 1_000}k"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        one_run(sys.argv[2], float(sys.argv[3]), *sys.argv[4:6])
    else:
        main("scale", run)
