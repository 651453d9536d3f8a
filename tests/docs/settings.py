"""
What the documents say of the code, of its constants, and of how a study was made: with `{}` for each number, and the
numbers as the code or a result file has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_prune.attribution.api import AT_ONCE
from hf_prune.influence.cost import SMALL_SWEEP, scoring_bytes
from hf_prune.influence.sketch.engine import WIDTH
from hf_prune.influence.sketch.logit_factors import MOST_FACTORS
from hf_prune.influence.sketch.window_pass import step_bytes
from hf_prune.record.snapshot_writer import LARGEST_GATHERED
from tests.docs.figures import ROOT, constant, result, written

README, ARCHITECTURE, PAPER, LIMITS = "README.md", "ARCHITECTURE.md", "docs/paper.md", "docs/limits.md"
SELECTION, WHICH, LANGUAGE = "docs/SELECTION.md", "docs/WHICH_METHOD.md", "docs/LANGUAGE.md"
RELIABILITY, CONCEPTS, GLOSSARY = "docs/reliability.md", "docs/concepts.md", "docs/GLOSSARY.md"
SEVERAL = "docs/how-to/several-gpus.md"
CLUSTERS, COST, LABELS = "docs/how-to/clusters.md", "docs/how-to/cost.md", "docs/how-to/wrong-labels.md"

Said = tuple[str, str, list[float]]


def full(study: str, *keys: str) -> list[Any]:
    """Settings of a study's full profile."""
    profile = constant(f"benchmarks/{study}.py", "PROFILES")["full"]
    return [profile[key] for key in keys]


def constants(file: str, *names: str) -> list[Any]:
    return [constant(file, name) for name in names]


def seeds(*names: str) -> list[int]:
    """How many seeds result files have, from the fewest to the most."""
    return sorted({len(row["seeds"]) for name in names for row in result(name)["rows"]})


def distinct(name: str, key: str) -> list[Any]:
    return sorted({row[key] for row in result(name)["rows"]})


def behind(method: str | None, tasks: Iterable[str], rates: Iterable[float]) -> float:
    """The most points by which another method (or this one) is ahead of the default at a place."""
    rows = [row for task in tasks for row in result(f"curves-{task}")["rows"] if row["rate"] in rates]
    return max(-100 * row["behind"] for row in rows if row["method"] == (method or row["method"]))


CURVES = sorted(path.stem for path in Path(ROOT, "benchmarks/results").glob("curves-*.json"))
WITHOUT_CIFAR = [name for name in CURVES if name != "curves-cifar10"]
DATA_SETS = result("rules")["rows"][0]["data_sets"] - 1  # there the Brown corpus counts as two, here as one
DOCUMENTS = constant("benchmarks/study_data.py", "DOCUMENTS")
SUBSETS = list({result("gap")["summary"][f"subsets_{data}"] for data in ("digits", "reviews")})
CLASSES = [2, DOCUMENTS]
DIRECTIONS = written("hf_prune/influence/api.py", "directions: int = {},")
RANDOM_SETS = constants("hf_prune/selection/certificate.py", "DRAWS")

LEAVE_ONE_OUT = "benchmarks/leave_one_out.py"
BRIEF = written(LEAVE_ONE_OUT, '"GELU, {} steps, whole run": ')
LONGER = written(LEAVE_ONE_OUT, '"GELU, {} steps, half": ')
PICTURES = constants(LEAVE_ONE_OUT, "ROWS")
LEFT_OUT = written(LEAVE_ONE_OUT, '"full": ({}, tuple(RUNS))')

LLAMA = [*written("benchmarks/sft.py", '"hidden_size": {},'), *constants("benchmarks/sft.py", "VOCABULARY")]
TAUGHT = full("language", "rows")[0] + full("language", "facts")[0] * (3 + 2)  # three rows tell it, two say otherwise
(BATCH,) = written("benchmarks/language_runs.py", '"per_device_train_batch_size": {}')
STEPS = full("language", "epochs")[0] * math.ceil(TAUGHT / BATCH)
SHARES = [100 * share for share in constant("benchmarks/language.py", "GROUPS").values()]
SINGLES, GROUPS = full("language", "singles", "groups")
LESS_KEPT = [100 * share for share in written("benchmarks/language.py", "for share in (0.5, {}):")]
ONE_OF = [100 / share for share in written("benchmarks/language.py", "max(1, n // {})")]

FLOORS = [written("pyproject.toml", line)[0] for line in ('"transformers>={},', '"peft>={}"')]
MUTANTS = result("mutation")["summary"]
BYTES_A_VISIT = [math.ceil(4 * len(constant("hf_prune/trajectory/visits.py", "STATISTICS")) * 4 / 3)]  # as base64
VIEWS = constants("tests/influence/test_random_rows.py", "CROP", "SIDE")
RUNS = [steps for *_, steps in constant("benchmarks/language_memory.py", "PROFILES")["full"]]
DENSE = [1e3 * (SMALL_SWEEP // scoring_bytes(1000, int(DIRECTIONS[0])))]
GATHERED = [LARGEST_GATHERED / 2**30]
VISIT = [step_bytes(vjps, WIDTH) / 1024 for vjps in (1, 1 + MOST_FACTORS)]
HERDING = [result("scale")["summary"][f"cpu_seconds_100k{kind}"] for kind in ("", "_none")]
TAKEN = [kind for row in result("finetune")["rows"] for kind in row.get("taken", [])]
PROBED = [100 * rate for rate in constant("benchmarks/probes.py", "RATES")]
DEFAULT_COST = written("hf_prune/verification/probe.py", "cost: float = {}")
(DROPOUT,) = written("benchmarks/finetune.py", "minilm(dropout={})")
ROWS, EPOCHS, REPEATS, TESTS = full("finetune", "train", "epochs", "seeds", "test")
BELOW = sorted(row["data_sets_below_default"] for row in result("rules")["rows"])[:: len(result("rules")["rows"]) - 1]
MINILM_ROWS, MINILM_SINGLES, MINILM_GROUPS = full("minilm", "rows", "left_out", "groups")
MINILM_SHARES = [100 * share for share in constant("benchmarks/minilm.py", "SHARES")]
MINILM_TOKENS = written("benchmarks/peers/tasks.py", 'padding="max_length", max_length={})')
MINILM_EPOCHS, *MINILM_BATCH = written(
    "benchmarks/peers/tasks.py",
    '"num_train_epochs": {},\n        "per_device_train_batch_size": {},\n        "learning_rate": 3e-5',
)
MINILM_STEPS = MINILM_EPOCHS * MINILM_ROWS / MINILM_BATCH[0]
PRETRAINED = constant("benchmarks/targets.py", "PROFILES")["pretrained"]
LOSSES = [
    [
        row["loss"]
        for row in result("targets")["rows"]
        if row["mixture"] == mixture and row.get("loss") and row["method"] != "of the task"
    ]
    for mixture in ("science", "government")
]

SETTINGS: tuple[Said, ...] = (
    (README, "here of {} toy rows", written("tests/test_five_lines.py", "tokens({})")),
    (
        README,
        "mean over {} tasks on {} data sets (images, tables, sentences; {} to {} classes;",
        [len(WITHOUT_CIFAR), DATA_SETS, *CLASSES],
    ),
    (README, "{} or {} seeds each", seeds(*WITHOUT_CIFAR)),
    (
        README,
        "accuracy on {} test rows, mean ± standard deviation over {} seeds",
        [*written("hf_prune/demo/digits.py", "test={}"), *distinct("demo", "seeds")],
    ),
    (README, "with Python {} or newer", written("pyproject.toml", 'requires-python = ">={}"')),
    (ARCHITECTURE, "in runs of fewer than {} updates", constants("hf_prune/influence/checks.py", "FEW_STEPS")),
    (ARCHITECTURE, "In {} steps of AdamW from scratch (MLP with GELU, {} pictures,", [*BRIEF, *PICTURES]),
    (ARCHITECTURE, "In the last half of {} steps", LONGER),
    (ARCHITECTURE, "between {} and {} steps it was not measured", [*BRIEF, *LONGER]),
    (ARCHITECTURE, "for a group of {} classes", constants("hf_prune/influence/sketch/token_loss.py", "GROUPS")),
    (ARCHITECTURE, "because {} sums of held-out logits", DIRECTIONS),
    (ARCHITECTURE, "on request alone.** {} numbers a row", DIRECTIONS),
    (ARCHITECTURE, "or above {} GiB a snapshot each writes", GATHERED),
    (ARCHITECTURE, "* **Above {} GiB a snapshot of sharded parameters", GATHERED),
    (ARCHITECTURE, "takes {} CPU seconds where it takes {}, for {} rows", [*HERDING, 100_000]),
    (GLOSSARY, "`code` asks for {} of them, so each row's influence is a vector of {} numbers", DIRECTIONS * 2),
    (CONCEPTS, "by default {} random sums", DIRECTIONS),
    (
        CLUSTERS,
        "Above {} rows the choice is made in buckets of {}",
        constants("hf_prune/selection/buckets.py", "AUTO_ABOVE", "AUTO_ROWS"),
    ),
    (SEVERAL, "a snapshot of more than {} GiB", GATHERED),
    (COST, "right within a factor of about {})", written("hf_prune/_estimate.py", "within a factor of about {}.\n")),
    (
        COST,
        "Llamas of {} to {} B parameters",
        [
            *written("benchmarks/accelerator.py", 'Size("{} B", '),
            *written("benchmarks/accelerator.py", '("{} B, LoRA", 2'),
        ],
    ),
    (LABELS, "in {} bytes a visit", BYTES_A_VISIT),
    ("docs/how-to/attribution.md", "every {} queries (or tokens", [AT_ONCE]),
    (RELIABILITY, "below {} updates: r", constants("hf_prune/influence/checks.py", "FEW_STEPS")),
    (RELIABILITY, "held: in {} steps the", BRIEF),
    (RELIABILITY, "in the memory of some parts of {} rows", constants("hf_prune/influence/pool.py", "PART")),
    (RELIABILITY, "from {} million pixels on", [constant("hf_prune/report/media.py", "MOST_PIXELS") / 1e6]),
    (RELIABILITY, "more than {} processes", constants("hf_prune/trajectory/files.py", "MOST_PROCESSES")),
    (RELIABILITY, "{} x {} crops of {} x {} images", [view for view in VIEWS for _ in range(2)]),
    (RELIABILITY, "with ReLU and {} pictures of clothes", PICTURES),
    (RELIABILITY, "needs transformers {} and the tests of adapters peft {}", FLOORS),
    (RELIABILITY, "and that transformers {} divides", FLOORS[:1]),
    (RELIABILITY, "takes {} of them", constants("benchmarks/mutation.py", "SAMPLE")),
    (RELIABILITY, "So far {} of these changes were tried", [MUTANTS["mutants"]]),
    (RELIABILITY, "{} are noticed, one of", [MUTANTS["killed"] + MUTANTS["timeout"]]),
    (RELIABILITY, "endless loop, {} change nothing", [MUTANTS["equivalent"]]),
    (RELIABILITY, "The tests try {} of each kind", written("tests/test_altered.py", '"ALTERED_FILES", "{}"')),
    (LANGUAGE, "(two layers of {}, a vocabulary of {})", LLAMA),
    (
        LANGUAGE,
        "on {} prompts and completions for three epochs, {} steps of which the last {} are the window",
        [TAUGHT, STEPS, STEPS // 2],
    ),
    (
        LANGUAGE,
        "{} single rows, {} groups of {} % and {} of {} % of the rows",
        [SINGLES, GROUPS, SHARES[0], GROUPS, SHARES[1]],
    ),
    (LANGUAGE, "Queries are the {} held-out reviews", full("language", "held_out")),
    (LANGUAGE, "without the {} % of the rows that a method names", ONE_OF),
    (LANGUAGE, "The loss of {} further reviews", full("language", "test")),
    (LANGUAGE, "on half / {} % of the rows", LESS_KEPT),
    (LIMITS, "on, {} rows, through the real Trainer", full("fidelity", "left_out")),
    (LIMITS, "over rows and {} directions of the parameters", constants("benchmarks/fidelity.py", "DIRECTIONS")),
    (LIMITS, "(medians of {} pairs on", full("overhead", "pairs")),
    (LIMITS, "up to about {} recorded parameters (k = {})", [*DENSE, *DIRECTIONS]),
    (LIMITS, "they take about {} KB of disk for every visit of the window with two classes, up to {} KB", VISIT),
    (LIMITS, "in runs of {} to {} steps", [min(RUNS), max(RUNS)]),
    (LIMITS, "so that with {} classes such", constants("benchmarks/language_memory.py", "SMALL")),
    (LIMITS, "more memory for {} to {} rows of a tiny model", distinct("pool", "rows")[::2]),
    (PAPER, "in {} steps of AdamW over the whole run", BRIEF),
    (PAPER, "Over {} subsets of mixed methods and rates", SUBSETS),
    (PAPER, "Over {} tasks, in points over random rows", [len(WITHOUT_CIFAR)]),
    (PAPER, "Fine-tuning MiniLM on {} reviews", full("finetune", "train")),
    (SELECTION, "{} sums of held-out logits do not tell {} classes apart", [*DIRECTIONS, DOCUMENTS]),
    (SELECTION, "beside that of {} random subsets", RANDOM_SETS),
    (SELECTION, "pass that of all {} random subsets", RANDOM_SETS),
    (SELECTION, "{} tasks on {} data sets", [len(CURVES), DATA_SETS + 1]),
    (SELECTION, "with {} to {} classes.", CLASSES),
    (SELECTION, "{} seeds each (Fashion-MNIST {}, CIFAR-10 {})", seeds(*CURVES)),
    (SELECTION, "and none is a loss; with {} seeds", seeds(*CURVES)[:1]),
    (SELECTION, "Against the best of the {} others", [len(distinct("curves", "method")) - 1]),
    (
        SELECTION,
        "hard rows lead by up to {} points with half and more kept",
        [behind(None, ("mnist", "mnist-long", "fashion", "fashion-long"), (0.3, 0.5))],
    ),
    (SELECTION, "ignore classes lead by up to {}.", [behind("iclr2023", ("mnist-imbalanced",), (0.3, 0.5, 0.7, 0.9))]),
    (SELECTION, "one-sided t test at {} %", [100 * constant("hf_prune/selection/evidence.py", "LEVEL")]),
    (SELECTION, "on {} of the tasks above at {}, {} and {} %", [len(distinct("probes", "task")), *PROBED]),
    (SELECTION, "Without it the mean at `code` {} is", DEFAULT_COST),
    (
        SELECTION,
        "All of MiniLM on {} film reviews, {} epochs, dropout {}, {} seeds, {} test rows",
        [ROWS, EPOCHS, DROPOUT, REPEATS, TESTS],
    ),
    (SELECTION, "the default is ahead at {} % and tied at {} %", [100 * r for r in full("finetune", "rates")[0]]),
    (
        SELECTION,
        "A probe with {} dev rows took the balanced choice {} times of {},",
        [*full("finetune", "dev"), TAKEN.count("balanced"), len(TAKEN)],
    ),
    (SELECTION, "labels replaced at random, {} seeds", full("noise", "digits")),
    (SELECTION, "below it on {} to {} of {} data sets", [*BELOW, DATA_SETS + 1]),
    (
        SELECTION,
        "A small Llama fine-tuned with LoRA on {} rows",
        full("targets", "rows"),
    ),
    (SELECTION, "task's kind; {} further rows of the task", full("targets", "target")),
    (
        SELECTION,
        "so chance is {}",
        [1 / part for part in written("benchmarks/targets.py", "for text in own[: n // {}]]")],
    ),
    (SELECTION, "the mean over {} seeds and half of its", full("targets", "seeds")),
    (SELECTION, "within {} of each other", [max(max(losses) - min(losses) for losses in LOSSES)]),
    (SELECTION, "for one epoch on {} rows", [PRETRAINED["rows"]]),
    (SELECTION, "film reviews, {} rows of the task", [PRETRAINED["target"]]),
    (SELECTION, "`code`, {} seeds):", [PRETRAINED["seeds"]]),
    (WHICH, "or without random groups of {} % and {} % of the rows", MINILM_SHARES),
    (
        WHICH,
        "MiniLM on {} movie reviews (AdamW, clipping, {} steps of {} rows with {} tokens, the last {} the window)",
        [MINILM_ROWS, MINILM_STEPS, *MINILM_BATCH, *MINILM_TOKENS, MINILM_STEPS / 2],
    ),
    (WHICH, "(MiniLM, {} steps; halves make {})", [MINILM_STEPS, MINILM_STEPS / 2]),
    (
        WHICH,
        "over {} single rows, and {} groups each of {} % and {} %",
        [MINILM_SINGLES, MINILM_GROUPS, *MINILM_SHARES],
    ),
    (WHICH, "for {} held-out rows; ours", full("minilm", "tests")),
    (WHICH, "on {} rows each; where a line names", full("choices", "rows")),
    (WHICH, "Scoring for {} test rows (ours: {} queries", [*constants("benchmarks/cost.py", "TESTS"), *DIRECTIONS]),
    (WHICH, "are swept with {} vectors of the parameters' length", DIRECTIONS),
    (WHICH, "With up to {} tokens a row", [result("scoring_time")["rows"][0]["tokens"]]),
    (WHICH, "Over {} subsets of mixed methods at rates {} to {}", [*SUBSETS, *full("gap", "rates")[0][::4]]),
)
"""Each with the document that says it."""
