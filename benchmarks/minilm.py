"""
Predicted against true outputs of a fine-tuned MiniLM without some of its rows, ours beside other libraries'.

The run is a real Trainer's on movie reviews: AdamW with its defaults, learning rate 3e-5, warm-up, clipping at 1.0, 3
epochs, recorded by the callback with its defaults (the window is the last half); once without dropout and once with
0.1. Three questions:

- Leaving out: a plain loop repeats the window once as it was (`rerun_error`: the logits' difference from the Trainer's
  own) and once for each of 20 rows and of 24 random groups (5 % and 20 % of the rows) with their loss terms zeroed;
  denominators and order stay. With dropout all repeats have the same masks, which are not the run's own: `other masks`
  is what another draw of them changes, in units of a group's effect. Ours predicts every held-out logit; the change of
  the held-out loss is that of the predicted logits, `linear loss` its first-order prediction.
- The same of margins, beside the other libraries (see `peers/`), whose scores have no unit.
- LDS, the linear datamodeling score: margins of models trained again on random halves. In so short a run these are
  mostly what the class balance of a half makes of them, so a score that knows nothing but whether two rows have one
  label is shown beside (`label alone`), and first-order sums over a record of the whole run.

Rows, groups and halves are drawn from a fixed seed before anything is measured. `--work` keeps what was measured, so
that a second call goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from peers.measures import bootstrap_lds, fidelity, linear_datamodeling_score, of_sets
from peers.recorded import Run, opened, record
from peers.rerun import fresh, train_one, window_batches
from peers.study import Answers, others
from peers.tasks import Task, margins, minilm
from torch.nn import functional

from hf_prune._core.processes import Processes
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.calibration import measure_gn_scale
from hf_prune.influence.sketch.engine import SketchEngine
from hf_prune.influence.sketch.scales import ScaledSketches
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows

PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"rows": 96, "tests": 16, "left_out": 2, "groups": 1, "halves": 4, "dropouts": (0.0,), "libraries": 3},
    "full": {
        "rows": 640,
        "tests": 64,
        "left_out": 20,
        "groups": 12,
        "halves": 32,
        "dropouts": (0.0, 0.1),
        "libraries": 7,
    },
}
SEED = 11
BATCH = 32
SHARES = (0.05, 0.2)
CURVATURES = ("gauss-newton", "fisher", "none")
LIBRARIES = (
    "TracInCP (captum)",
    "gradient dot product (captum)",
    "EK-FAC (kronfluence)",
    "TRAK (traker)",
    "DVEmb (dattri)",
    "DVEmb (dattri-llm)",
    "AdamW-influence (dattri-llm)",
)


def kept(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in `file`, made where it is missing."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        part = file.with_name(f".{file.name}")
        np.save(part, found)
        part.replace(file)
    return np.load(file)


def recorded(task: Task, place: Path, window: float = 0.5) -> Run:
    if not (place / "done").exists():
        record(task, place, window=window)
        (place / "done").touch()
    return opened(task, place)


def logits(model: torch.nn.Module, task: Task) -> np.ndarray:
    """The held-out logits `(m, C)`."""
    x, _ = task.test_tensors
    with torch.no_grad():
        return model(**dict(zip(task.inputs, x.unbind(1), strict=True))).logits.double().numpy()


def arms(rows: int, settings: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """Which rows are left out: some alone, and random groups."""
    random = np.random.default_rng(SEED)
    found = {"rows": [np.array([i]) for i in random.permutation(rows)[: settings["left_out"]]]}
    for share in SHARES:
        found[f"{share:.0%} groups"] = [
            random.permutation(rows)[: round(rows * share)] for _ in range(settings["groups"])
        ]
    return found


def leave_out(run: Run, place: Path, sets: list[np.ndarray], masks: int = 0) -> np.ndarray:
    """The held-out logits `(sets, m, C)` after the window without each set."""
    model = run.task.model()

    def one(rows: np.ndarray) -> np.ndarray:
        begin, updates = run.thetas[run.first], run.trajectory.updates_before(run.first)
        batches = window_batches(run, [rows])
        train_one(model, run.task, begin, batches, moments=run.moments, updates=updates, seed=masks)
        return logits(model, run.task)

    return np.stack([kept(place / f"{masks}-{i}.npy", partial(one, rows)) for i, rows in enumerate(sets)])


def halves(task: Task, place: Path, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Random halves of the rows, and the margins `(count, 1, m)` of a model trained on each."""
    n = len(task.train)
    sets = [np.random.default_rng([SEED, i]).permutation(n)[: n // 2] for i in range(count)]
    model = task.model()

    def one(i: int) -> np.ndarray:
        thetas, batches = fresh(task, [sets[i]], [1000 + i])
        return logits(train_one(model, task, thetas[0], batches, seed=i), task)

    found = [kept(place / f"half-{i}.npy", partial(one, i)) for i in range(count)]
    return sets, of_margins(np.stack(found), task)[:, None]


def of_margins(found: np.ndarray, task: Task) -> np.ndarray:
    return margins(torch.from_numpy(found), task.test_tensors[1]).numpy()


def effects(run: Run, place: Path, mode: str, curvatures: tuple[str, ...] = CURVATURES) -> dict[str, np.ndarray]:
    """The predicted effect of leaving out each row on each held-out logit, `(n, m, C)`, by curvature."""
    replay = Replay.of(run.task.train, run.trajectory, run.model)
    cache = SharedCache(place, Processes(0, 1))
    scale = cache.value("gn_scale.json", lambda: measure_gn_scale(replay), float)
    engine = SketchEngine(replay, cache, key="minilm", curvature="none", gn_scale=scale, batch_size=BATCH)
    engine.prepare()
    rows, tests = replay.rows, replay.rows.of(run.task.test)
    queries = logit_queries(engine, tests)
    found = {}
    for curvature in curvatures:
        engine.sweep.curvature = curvature
        effect = engine.visits(queries) if mode == "visits" else engine.expected(queries, rows)
        found[curvature] = effect.reshape(len(rows), len(tests), -1)
    return found


def logit_queries(engine: SketchEngine, rows: Rows) -> ScaledSketches:
    """Every logit of every row, `(m C, d)`."""
    theta, scales = engine.replay.theta(engine.replay.last), engine.window.scales.at(engine.replay.last)
    found = []
    for _, batch in rows.batches(BATCH):
        with engine.window.per_example.forward(theta, batch.inputs) as forward:
            units = torch.eye(forward.logits.shape[1]).to(forward.logits)
            places = [forward.vjp(unit.expand_as(forward.logits), scales.factors) for unit in units]
        found.append(torch.stack(places, 1).flatten(0, 1))
    return ScaledSketches(torch.cat(found), scales.log_means)


def compared(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Pearson correlation and relative error."""
    error = np.linalg.norm(predicted - truth) / np.linalg.norm(truth)
    return float(np.corrcoef(predicted.ravel(), truth.ravel())[0, 1]), float(error)


def of_logits(
    run: Run,
    found: dict[str, np.ndarray],
    kinds: dict[str, list[np.ndarray]],
    base: np.ndarray,
    truths: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """One row for each curvature and kind of group."""
    labels = run.task.test_tensors[1]

    def loss(z: np.ndarray) -> np.ndarray:
        return np.array([float(functional.cross_entropy(torch.from_numpy(each), labels)) for each in z])

    own, rows = loss(base[None])[0], []
    slope = (torch.from_numpy(base).softmax(1) - functional.one_hot(labels, base.shape[1])).numpy() / len(labels)
    groups = [name for name in kinds if name != "rows"]
    for curvature, effect in found.items():
        shifts = {name: np.stack([effect[group].sum(0) for group in each]) for name, each in kinds.items()}
        for kind, names in (("single rows", ["rows"]), *((name, [name]) for name in groups), ("groups", groups)):
            predicted = np.concatenate([shifts[name] for name in names])
            truth = np.concatenate([truths[name] - base for name in names])
            r, error = compared(predicted, truth)
            change = loss(base + truth) - own
            r_loss, loss_error = compared(loss(base + predicted) - own, change)
            r_slope, slope_error = compared((predicted * slope).sum((1, 2)), change)
            rows.append(
                {
                    "run": run.task.name,
                    "curvature": curvature,
                    "left out": kind,
                    "arms": len(truth),
                    "logits r": r,
                    "logits error": error,
                    "loss r": r_loss,
                    "loss error": loss_error,
                    "linear loss r": r_slope,
                    "linear loss error": slope_error,
                }
            )
    return rows


def scores_of_others(run: Run, place: Path, first: int, names: tuple[str, ...]) -> dict[str, tuple[np.ndarray, float]]:
    """The scores `(n, m)` of each library in each of its settings, and the seconds of one thread."""
    found = {}
    for library, settings in others(names).items():
        begin = first if library in Answers.OF_STEPS else 0  # the others look at the trained model alone
        for name, method in settings.items():
            file = place / f"{name}, from {begin}.npy"

            def make(method: Any = method, file: Path = file, begin: int = begin) -> np.ndarray:
                start = time.process_time()
                scores = method([run], first=begin)
                file.with_suffix(".seconds").write_text(str(time.process_time() - start))
                return scores

            found[name] = kept(file, make), float(file.with_suffix(".seconds").read_text() or "nan")
    return found


def best_of_each(rows: list[dict[str, Any]], figure: str) -> list[dict[str, Any]]:
    """Of a method's settings (`name, ridge 1`) the best one."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["question"], row["method"].split(", ")[0] if "(" in row["method"] else row["method"]
        if key not in found or row[figure] > found[key][figure]:
            found[key] = row
    return list(found.values())


def margins_left_out(
    run: Run,
    place: Path,
    found: dict[str, np.ndarray],
    kinds: dict[str, list[np.ndarray]],
    base: np.ndarray,
    truths: dict[str, np.ndarray],
    names: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Every method on rows and groups left out of the window."""
    sign = 2 * functional.one_hot(run.task.test_tensors[1], 2).numpy() - 1
    ours = {f"hf_prune, {name}": ((effect * sign).sum(2), None) for name, effect in found.items()}
    start = of_margins(base, run.task)
    theirs, rows = scores_of_others(run, place, run.first, names), []
    for kind, sets in kinds.items():
        shifts = of_margins(truths[kind], run.task) - start
        for name, (scores, seconds) in {**ours, **theirs}.items():
            figures = fidelity(of_sets(scores, sets), shifts, start)
            figures = {key: figures[key] for key in ("margin_r", "row_rho", "loss_linear_r")}
            rows.append(
                {
                    "run": run.task.name,
                    "question": kind,
                    "method": name,
                    "sets": len(sets),
                    **figures,
                    "seconds": seconds,
                }
            )
    return best_of_each(rows, "margin_r")


def datamodel(run: Run, place: Path, count: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """LDS of every method, one recorded run each."""
    sets, truth = halves(run.task, place / "halves", count)
    sign = 2 * functional.one_hot(run.task.test_tensors[1], 2).numpy() - 1
    whole = recorded(run.task, place / "whole", window=1.0)
    own = {
        "hf_prune (expected)": (run, "sketches", "gauss-newton"),
        "hf_prune, whole run": (whole, "sketches-whole", "gauss-newton"),
        "hf_prune, whole run, none": (whole, "sketches-whole", "none"),
    }
    scores = {"label alone": (-_same_label(run.task), None)}
    for name, (of_run, sketches, curvature) in own.items():

        def make(of_run: Run = of_run, sketches: str = sketches, curvature: str = curvature) -> np.ndarray:
            return effects(of_run, place / sketches, "expected", (curvature,))[curvature]

        scores[name] = ((kept(place / f"{name}.npy", make) * sign).sum(2), None)
    scores |= scores_of_others(run, place / "scores", 0, names)
    draws = bootstrap_lds({name: found for name, (found, _) in scores.items()}, sets, truth)
    rows = [
        {
            "run": run.task.name,
            "question": "LDS",
            "method": name,
            "sets": count,
            "lds": linear_datamodeling_score(found, sets, truth),
            "lds_se": float(draws[name].std()),
            "lead_se": float((draws["hf_prune (expected)"] - draws[name]).std()),
            "seconds": seconds,
        }
        for name, (found, seconds) in scores.items()
    ]
    return best_of_each(rows, "lds")


def _same_label(task: Task) -> np.ndarray:
    """1 where a training row and a test row have one label, else -1: what tells of a half's class balance alone."""
    return 2.0 * (task.train_tensors[1][:, None] == task.test_tensors[1]).numpy() - 1


def study(settings: dict[str, Any], dropout: float, work: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """All tables of one run, and how well its window was repeated."""
    task = minilm(settings["rows"], settings["tests"], dropout, SEED)
    place = work / f"dropout-{dropout}"
    run = recorded(task, place / "run")
    kinds = arms(settings["rows"], settings)
    sets = [group for each in kinds.values() for group in each]
    [base] = leave_out(run, place / "base", [np.array([], dtype=int)])
    found = leave_out(run, place / "arms", sets)
    ends = np.cumsum([len(each) for each in kinds.values()])
    truths = dict(zip(kinds, np.split(found, ends[:-1]), strict=True))
    effect = {
        name: kept(place / f"visits-{name}.npy", lambda name=name: effects(run, place / "sketches", "visits")[name])
        for name in CURVATURES
    }
    rows = of_logits(run, effect, kinds, base, truths)
    own = logits(run.model.eval(), task)
    if dropout:
        [again] = leave_out(run, place / "base", [np.array([], dtype=int)], masks=1)
        size = np.sqrt(np.square(np.concatenate(list(truths.values())[1:]) - base).mean())
        return rows, {"other_masks": float(np.sqrt(np.square(again - base).mean()) / size)}
    names = LIBRARIES[: settings["libraries"]]
    rows += margins_left_out(run, place / "scores", effect, kinds, base, truths, names)
    rows += datamodel(run, place, settings["halves"], names)
    return rows, {"rerun_error": float(np.abs(base - own).max())}


def run(profile: str, work: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for dropout in PROFILES[profile]["dropouts"]:
            found, checks = study(PROFILES[profile], dropout, work or Path(directory))
            rows, summary = rows + found, summary | checks
    return rows, summary | summarize(rows)


def summarize(rows: list[dict[str, Any]]) -> dict[str, float]:
    summary = {}
    for row in rows:
        suffix = "_dropout" if "dropout" in row["run"] else ""
        if row.get("curvature") == "gauss-newton" and row["left out"] in ("single rows", "groups"):
            name = "loo" if row["left out"] == "single rows" else "groups"
            summary |= {
                f"{name}_minilm{suffix}": row["logits r"],
                f"{name}_loss_minilm{suffix}": row["loss r"],
                f"{name}_loss_error_minilm{suffix}": row["loss error"],
            }
    asked = {row["method"]: row["lds"] for row in rows if row.get("question") == "LDS"}
    summary["lds_minilm"] = asked["hf_prune (expected)"]
    summary["lds_minilm_whole_none"] = asked["hf_prune, whole run, none"]
    rest = [lds for name, lds in asked.items() if "(" in name and not name.startswith("hf_prune")]
    summary["lds_best_other"] = max(rest, default=float("nan"))
    return summary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--work", type=Path, help="a directory that keeps what was measured")
    own, sys.argv[1:] = parser.parse_known_args()
    main("minilm", partial(run, work=own.work))
