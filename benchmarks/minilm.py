"""
Predicted against true held-out outputs when rows are left out of the window of a MiniLM fine-tuning run.

The run is a real Trainer's on movie reviews: AdamW with its defaults, learning rate 3e-5, warm-up, clipping at 1.0, 3
epochs, recorded by the callback with its defaults (the window is the last half). Truth: a plain loop repeats the run's
first half, then its window once as it was (the logits equal the Trainer's own: `rerun_error`) and once for each of 20
rows and of 24 random groups (5 % and 20 % of the rows) with their loss terms zeroed; denominators and order stay.
Dropout is 0. Rows and groups are drawn from a fixed seed.

Prediction: the projected engine's effects of the rows' visits on every held-out logit, summed over a group; the change
of the held-out loss is that of the predicted logits; `linear loss` is its first-order prediction.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main, minilm, movie_reviews
from datasets import Dataset
from torch.nn import functional
from transformers import Trainer, TrainingArguments, set_seed

from hf_prune import Trajectory, TrajectoryCallback
from hf_prune.influence.objective import Objective
from hf_prune.influence.projected.engine import ProjectedEngine
from hf_prune.influence.projected.questions import logit_questions
from hf_prune.influence.ranks import Ranks
from hf_prune.influence.rows import Rows
from hf_prune.influence.sweep import Sweep

PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"rows": 96, "held_out": 32, "left_out": 2, "groups": 1},
    "full": {"rows": 640, "held_out": 64, "left_out": 20, "groups": 12},
}
SHARES = (0.05, 0.2)


def trained(rows: Dataset, tokenizer: Any, model: Any, directory: str) -> Trajectory:
    """A recorded run of the real Trainer."""
    arguments = TrainingArguments(
        directory, num_train_epochs=3, per_device_train_batch_size=16, learning_rate=3e-5, warmup_steps=0.1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    record = Path(directory) / "trajectory"
    Trainer(
        model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[TrajectoryCallback(record)]
    ).train()
    return Trajectory.open(record)


class Rerun:
    """The recorded run again in a plain loop, from its start to the window and then with rows left out."""

    def __init__(self, model: Any, tokenizer: Any, rows: Dataset, held_out: Dataset, trajectory: Trajectory):
        self.model, self.tokenizer, self.rows, self.trajectory = model, tokenizer, rows, trajectory
        self.inputs, self.labels = self.collate(held_out, range(len(held_out)))
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        self.steps(0, trajectory.window[0], set())
        self.start = copy.deepcopy((model.state_dict(), self.optimizer.state_dict()))

    def collate(self, rows: Dataset, ids: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        chosen = [dict(rows[int(i)]) for i in ids]
        labels = torch.tensor([row.pop("labels") for row in chosen])
        return self.tokenizer.pad(chosen, return_tensors="pt"), labels

    def steps(self, first: int, last: int, left_out: set[int]) -> None:
        self.model.train()
        for t in range(first, last):
            step = self.trajectory.step(t)
            inputs, labels = self.collate(self.rows, step.ids)
            kept = torch.tensor([float(int(i) not in left_out) for i in step.ids])
            losses = functional.cross_entropy(self.model(**inputs).logits, labels, reduction="none")
            ((losses * kept).sum() / len(labels)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.param_groups[0]["lr"] = step.learning_rates[0]
            self.optimizer.step()
            self.optimizer.zero_grad()

    def arm(self, left_out: set[int]) -> torch.Tensor:
        """The held-out logits `(m, 2)` after the window without these rows."""
        state, moments = self.start
        self.model.load_state_dict(state)
        self.optimizer.load_state_dict(copy.deepcopy(moments))
        self.steps(*self.trajectory.window, left_out)
        return self.logits()

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        self.model.eval()
        return self.model(**self.inputs).logits


def effects(model: Any, rows: Dataset, held_out: Dataset, trajectory: Trajectory, directory: Path) -> dict[str, Any]:
    """The predicted effect of leaving out each row on each held-out logit, `(n, m, 2)`, by curvature."""
    objective = Objective(model, trajectory.manifest.parameters)
    made = [Rows(part, objective.model, None, trajectory.manifest.padding) for part in (rows, held_out)]
    sweep = Sweep(trajectory, objective, made[0], curvature="none")
    engine = ProjectedEngine(sweep, Ranks(0, 1), curvature="none", directory=directory)
    engine.prepare()
    last = trajectory.window[1]
    scales, levels = engine.work.scales(last)
    questions = logit_questions(engine.work, sweep.theta(last), scales, made[1], 32).flatten(0, 1)
    found = {}
    for curvature in ("gauss-newton", "fisher", "none"):
        engine.sweep.curvature = curvature
        found[curvature] = engine.visits(questions, levels).reshape(len(rows), len(held_out), -1)
    return found


def compared(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Pearson correlation and relative error."""
    error = np.linalg.norm(predicted - truth) / np.linalg.norm(truth)
    return float(np.corrcoef(predicted.ravel(), truth.ravel())[0, 1]), float(error)


def tables(
    found: dict[str, Any], arms: dict[str, list[set[int]]], base: torch.Tensor, truths: dict[str, torch.Tensor],
    labels: torch.Tensor,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each curvature and kind of group."""

    def loss(z: torch.Tensor) -> np.ndarray:
        return np.array([float(functional.cross_entropy(each, labels)) for each in z])

    own, rows = float(functional.cross_entropy(base, labels)), []
    slope = (base.softmax(1) - functional.one_hot(labels, 2)) / len(labels)
    groups = [name for name in arms if name != "rows"]
    for curvature, effect in found.items():
        shifts = {
            name: torch.tensor(np.stack([effect[sorted(group)].sum(0) for group in each])).float()
            for name, each in arms.items()
        }
        for kind, names in (("single rows", ["rows"]), *((name, [name]) for name in groups), ("groups", groups)):
            predicted = torch.cat([shifts[name] for name in names])
            truth = torch.cat([truths[name] - base for name in names])
            r, error = compared(predicted.numpy(), truth.numpy())
            change = loss(base + truth) - own
            r_loss, loss_error = compared(loss(base + predicted) - own, change)
            r_slope, slope_error = compared((predicted * slope).sum((1, 2)).numpy(), change)
            rows.append(
                {"curvature": curvature, "left out": kind, "arms": len(truth), "logits r": r, "logits error": error,
                 "loss r": r_loss, "loss error": loss_error, "linear loss r": r_slope,
                 "linear loss error": slope_error}
            )  # fmt: skip
    return rows


def measure(settings: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """The table of one run, and the largest difference of the repeated run's logits from the Trainer's."""
    set_seed(0)
    model, tokenizer = minilm()
    start = copy.deepcopy(model.state_dict())
    n, m = settings["rows"], settings["held_out"]
    reviews = movie_reviews(n + m).map(lambda row: tokenizer(row["text"], truncation=True, max_length=64))
    reviews = reviews.remove_columns("text")
    rows, held_out = reviews.select(range(n)), reviews.select(range(n, n + m))
    random = np.random.default_rng(7)
    arms = {"rows": [{int(i)} for i in random.permutation(n)[: settings["left_out"]]]}
    for share in SHARES:
        arms[f"{share:.0%} groups"] = [
            set(random.permutation(n)[: round(n * share)].tolist()) for _ in range(settings["groups"])
        ]
    with tempfile.TemporaryDirectory() as directory:
        trajectory = trained(rows, tokenizer, model, directory)
        found = effects(model, rows, held_out, trajectory, Path(directory) / "sketches")
        own = copy.deepcopy(model).eval()
        model.load_state_dict(start)
        again = Rerun(model, tokenizer, rows, held_out, trajectory)
        with torch.no_grad():
            recorded = own(**again.inputs).logits
        base = again.arm(set())
        truths = {name: torch.stack([again.arm(group) for group in each]) for name, each in arms.items()}
    return tables(found, arms, base, truths, again.labels), float((base - recorded).abs().max())


def run(profile: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    torch.set_num_threads(1)
    rows, difference = measure(PROFILES[profile])
    summary: dict[str, Any] = {"rerun_error": difference}
    for row in rows:
        if row["curvature"] == "gauss-newton" and row["left out"] in ("single rows", "groups"):
            name = "loo" if row["left out"] == "single rows" else "groups"
            summary |= {f"{name}_minilm": row["logits r"], f"{name}_loss_minilm": row["loss r"]}
    return rows, summary


if __name__ == "__main__":
    main("minilm", run)
