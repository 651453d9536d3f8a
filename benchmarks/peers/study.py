"""All methods on one task: leave-one-out and groups of one run, and the linear datamodeling score."""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peers import ours
from peers.measures import bootstrap_lds, fidelity, linear_datamodeling_score, of_sets, reliability
from peers.recorded import Run, record
from peers.tasks import Task
from peers.truth import leave_out, random_groups, subsets

# Ours are shown with each.
CURVATURES = ("auto", "exact", "fisher", "none")

Method = Callable[..., np.ndarray]
# The scores (n, m) in each setting of a method, and the seconds that one of them took.
Scores = tuple[dict[str, np.ndarray], float]


# No library has it; it shows what differentiating the second moment is good for.
VARIANT = "AdamW-influence with v frozen (dattri-llm)"

# Name, file, function; the free constant of a method, and where the file has the settings of it that are tried.
LIBRARIES: tuple[tuple[str, str, str, str, str], ...] = (
    ("TracInCP (captum)", "captum_", "tracin", "", ""),
    ("gradient dot product (captum)", "captum_", "gradient_dot", "", ""),
    ("EK-FAC (kronfluence)", "kronfluence_", "ekfac", "", ""),
    ("TRAK (traker)", "traker_", "trak", "ridge", "RIDGES"),
    ("DVEmb (dattri)", "dattri_", "dvemb", "", ""),
    ("influence function (dattri)", "dattri_", "influence_function", "damping", "DAMPINGS"),
    ("DVEmb (dattri-llm)", "dattri_llm_", "dvemb", "", ""),
    ("AdamW-influence (dattri-llm)", "dattri_llm_", "adamw_influence", "", ""),
    (VARIANT, "dattri_llm_", "adamw_influence_frozen", "", ""),
)
NAMES = tuple(name for name, *_ in LIBRARIES)
# These predict the shift itself; the scores of the other libraries have no unit.
IN_UNITS = tuple(name for name in NAMES if name.startswith("AdamW-influence"))
# What is measured: the run, the question and the method, whose setting is left aside.
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Sizes:
    """
    How much truth is measured; fixed before any figure is looked at.

    Attributes:
        left_out (`int`): single rows that are left out.
        groups (`int`): random groups of 5 % of the rows, and as many of 20 %.
        halves (`int`): random half subsets for LDS.
        retrainings (`int`): trainings on each half, all with seeds of their own.
        runs (`int`): recorded runs that scores are averaged over, the same for each method.
        names (`tuple[str, ...]`): the other libraries' methods; those that would take too long are left out.
        known (`frozenset[Key]`): what was measured before and is left out too.
    """

    left_out: int
    groups: int
    halves: int
    retrainings: int
    runs: int
    names: tuple[str, ...] = NAMES
    known: frozenset[Key] = frozenset()


def key_of(row: dict[str, Any]) -> Key:
    """The key of a row of the tables."""
    method = next((name for name in NAMES if row["method"].startswith(f"{name}, ")), row["method"])
    return row["run"], row["question"], method


def others(names: tuple[str, ...] = NAMES) -> dict[str, dict[str, Method]]:
    """The methods of other libraries that are installed; those with a free constant in several settings."""
    found: dict[str, dict[str, Method]] = {}
    for name, file, function, constant, settings in LIBRARIES:
        if name not in names:
            continue
        try:
            module = importlib.import_module(f"peers.{file}")
        except ImportError as error:
            print(f"{name} is left out, for {error.name} is not installed: see benchmarks/requirements.txt")
            continue
        method = getattr(module, function)
        values = getattr(module, settings) if settings else ()
        tried = {f"{name}, {constant} {value:g}": partial(method, **{constant: value}) for value in values}
        found[name] = tried or {name: method}
    return found


def study(task: Task, sizes: Sizes) -> list[dict[str, Any]]:
    """The rows of the tables of a task."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        runs = [record(task, place / f"run-{seed}", seed=seed) for seed in range(sizes.runs)]
        whole = [record(task, place / f"whole-{seed}", seed=seed, window=1.0) for seed in range(sizes.runs)]
        methods = Answers(others(sizes.names))
        n = len(task.train)
        singles = [np.array([row]) for row in np.random.default_rng(1).permutation(n)[: sizes.left_out]]
        groups = {
            f"groups of {share:.0%}": random_groups(n, share, sizes.groups, seed=seed)
            for share, seed in ((0.05, 2), (0.2, 3))
        }
        kinds = {"leave-one-out": singles} | groups
        # Groups left out of the whole run show errors, which scores without a unit have not.
        unasked = {(task.name, f"{kind}, whole run", name) for kind in groups for name in {*sizes.names} - {*IN_UNITS}}
        of_whole = {f"{kind}, whole run": sets for kind, sets in kinds.items()}
        return [
            *_left_out(runs[0], kinds, CURVATURES, methods, sizes.known),
            *_left_out(whole[0], of_whole, ("auto",), methods, sizes.known | unasked),
            *_datamodel(runs, whole, sizes, methods),
        ]


class Answers:
    """The score matrices of the other methods and their seconds; each is computed once."""

    # Those that ask which steps count; the others look at the trained model alone.
    OF_STEPS = ("TracInCP (captum)", "DVEmb (dattri)", "DVEmb (dattri-llm)", *IN_UNITS)

    def __init__(self, methods: dict[str, dict[str, Method]]):
        self.methods = methods
        self.known: dict[tuple[str, tuple[int, ...], int], tuple[dict[str, np.ndarray], float]] = {}

    def of(
        self, name: str, seeds: tuple[int, ...], runs: list[Run], first: int
    ) -> tuple[dict[str, np.ndarray], float]:
        """The scores `(n, m)` in each setting of a method, and the seconds of one of them."""
        first = first if name in self.OF_STEPS else 0
        if (name, seeds, first) not in self.known:
            settings = {key: partial(method, first=first) for key, method in self.methods[name].items()}
            self.known[name, seeds, first] = _timed(settings, runs)
        return self.known[name, seeds, first]


def _left_out(
    run: Run,
    kinds: dict[str, list[np.ndarray]],
    curvatures: tuple[str, ...],
    methods: Answers,
    known: frozenset[Key],
) -> list[dict[str, Any]]:
    """Rows and groups left out of the window of one run, that of seed 0."""
    own = {"hf_prune (visits)" if kind == "auto" else f"hf_prune, {kind}": kind for kind in curvatures}
    if run.trajectory.manifest.optimizer["name"] == "SGD":
        own.pop("hf_prune, exact", None)  # it is the default
    lacking = {
        name: {kind: sets for kind, sets in kinds.items() if (run.task.name, kind, name) not in known}
        for name in (*own, *methods.methods)
    }
    if not any(lacking.values()):
        return []
    truth = leave_out(run, [rows for sets in kinds.values() for rows in sets])
    print(f"{run.task.name}: the window run again differs from the recorded run by {truth.reproduced:.1e} in a margin")
    rows: list[dict[str, Any]] = []
    for name, asked in lacking.items():
        if not asked:
            continue
        if name in own:
            results, seconds = _timed({name: partial(ours.scores, mode="visits", curvature=own[name])}, [run])
        else:
            results, seconds = methods.of(name, (0,), [run], run.first)
        for kind, sets in asked.items():
            place = [i for i, removed in enumerate(truth.sets) if any(removed is other for other in sets)]
            figures = {
                key: fidelity(of_sets(scores, sets), truth.shifts[place], truth.base)
                for key, scores in results.items()
            }
            best = max(figures, key=lambda key: figures[key]["margin_r"])
            found = figures[best]
            if name not in (*own, *IN_UNITS):
                found = {key: found[key] for key in ("margin_r", "row_rho", "loss_linear_r")}
            row = {"run": run.task.name, "question": kind, "method": best, "sets": len(sets)}
            rows.append(row | found | {"seconds": seconds})
            print(json.dumps(rows[-1]), flush=True)  # a long run shows what it has
    return rows


def _datamodel(runs: list[Run], whole: list[Run], sizes: Sizes, methods: Answers) -> list[dict[str, Any]]:
    """Models trained from scratch on random halves of the rows."""
    own = {
        "hf_prune (expected)": ("auto", runs),
        "hf_prune, whole run": ("auto", whole),
        "hf_prune, whole run, fisher": ("fisher", whole),
        "hf_prune, whole run, none": ("none", whole),
    }
    lacking = [name for name in (*own, *methods.methods) if (runs[0].task.name, "LDS", name) not in sizes.known]
    if not lacking:
        return []
    truth = subsets(runs[0].task, sizes.halves, sizes.retrainings)
    rows: list[dict[str, Any]] = []
    matrices: dict[str, np.ndarray] = {}
    for name in lacking:
        if name in own:
            curvature, used = own[name]
            settings = {name: partial(ours.scores, mode="expected", curvature=curvature)}
            parts = [_timed(settings, [run]) for run in used]
        else:
            parts = [methods.of(name, (seed,), [run], 0) for seed, run in enumerate(runs)]
        together = {key: np.mean([part[0][key] for part in parts], axis=0) for key in parts[0][0]}
        if name.startswith("TRAK") and len(runs) > 1:  # it has a rule of its own for several models
            together = methods.of(name, tuple(range(len(runs))), runs, 0)[0]
        scored = {key: linear_datamodeling_score(s, truth.sets, truth.margins) for key, s in together.items()}
        best = max(scored, key=lambda key: scored[key])
        matrices[best] = together[best]
        singles = [linear_datamodeling_score(part[0][best], truth.sets, truth.margins) for part in parts]
        rows.append(
            {
                "run": runs[0].task.name,
                "question": "LDS",
                "method": best,
                "sets": sizes.halves,
                "lds_1_run": float(np.mean(singles)),
                "runs": len(runs),
                "lds": scored[best],
                "ceiling": reliability(truth.margins),
                "seconds": float(np.mean([part[1] for part in parts])),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    draws = bootstrap_lds(matrices, truth.sets, truth.margins)
    for row in rows:
        row["lds_se"] = float(draws[row["method"]].std())
        leader = draws.get("hf_prune (expected)")
        row["lead_se"] = None if leader is None else float((leader - draws[row["method"]]).std())
    return rows


def _timed(settings: dict[str, Method], runs: list[Run]) -> Scores:
    """The scores in each setting, and the seconds of one thread that one took."""
    start = time.process_time()
    found = {name: method(runs) for name, method in settings.items()}
    return found, (time.process_time() - start) / len(settings)


def snapshots(task: Task, left_out: int, counts: tuple[float, ...] = (1, 8)) -> list[dict[str, Any]]:
    """Leave-one-out of one run by the exact sweep, for several numbers of snapshots an epoch."""
    rows: list[dict[str, Any]] = []
    sets = [np.array([row]) for row in np.random.default_rng(1).permutation(len(task.train))[:left_out]]
    for count in counts:
        with tempfile.TemporaryDirectory() as directory:
            run = record(task, Path(directory) / "run", snapshots_per_epoch=count)
            truth = leave_out(run, sets)
            found, seconds = _timed({"exact": partial(ours.scores, mode="visits", curvature="exact")}, [run])
            row = {"run": run.task.name, "question": f"leave-one-out, {count} snapshots an epoch"}
            row |= {"method": "hf_prune, exact", "sets": len(sets)}
            rows.append(row | fidelity(of_sets(found["exact"], sets), truth.shifts, truth.base) | {"seconds": seconds})
    return rows
