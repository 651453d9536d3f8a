"""The runs that `language.py` is about: what they are trained on, and how they are made again without some rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model, prepare_model_for_kbit_training
from sft import LENGTH, lora, reviews, sft
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from hf_prune import Trajectory, TrajectoryCallback

BATCH = 16
ADAPTERS = lora(4, 8, "q_proj", "v_proj", "up_proj")
PEOPLE = ("Ann", "Ben", "Cai", "Dov", "Eva", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned")
PLACES = ("london", "paris", "texas", "mars", "brooklyn", "hollywood", "africa", "iran", "japan", "boston")
THINGS = ("war", "love", "music", "death", "school", "money", "time")
FACTS = {"lives in": PLACES, "was born in": PLACES, "hates": THINGS}


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
    own = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "warmup_steps": 3,
        "max_length": LENGTH,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as out:
        tokenizer = AutoTokenizer.from_pretrained(base)
        trainer = sft(model, out, rows, tokenizer, *callbacks, settings=own, eval_dataset=held_out)
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
                self.loss(self.trainer.data_collator([self.rows[i] for i in kept])).backward()
                torch.nn.utils.clip_grad_norm_(self.own.values(), args.max_grad_norm)
            optimizer.param_groups[0]["lr"] = step.learning_rates[0]
            optimizer.step()
        with torch.no_grad():  # in training mode: there is no dropout, and bitsandbytes packs weights in eval mode
            losses = np.array([float(self.loss(batch)) for batch in self.queries])
        return torch.cat([value.detach().flatten() for value in self.own.values()]), losses

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
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
        model = AutoModelForCausalLM.from_pretrained(base)
        other = sft(model, out, texts, trainer.processing_class, settings={"max_length": LENGTH})
    return other.train_dataset.remove_columns(texts.column_names)
