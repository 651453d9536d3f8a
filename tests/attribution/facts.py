"""A small world of facts: a Llama that knows how sentences go, fine-tuned with LoRA on rows that teach it facts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from hf_prune import Trajectory, TrajectoryCallback

PLACES = [f"place{i}" for i in range(24)]
KINDS = {
    "colour": [f"colour{i}" for i in range(8)],
    "animal": [f"animal{i}" for i in range(8)],
}
FORMS = (
    ("what is the {kind} of {place} ?", "it is {value}"),
    ("{place} has which {kind} ?", "that is {value} of course"),
    ("say the {kind} that {place} has", "{value}"),
)
PLANTED = ("place0", "colour", "colour7")
"""No other row teaches this of this place, and the base model says otherwise."""
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    fixed = ["<pad>", "<eos>", "<user>", "<assistant>", *PLACES, *KINDS, *KINDS["colour"], *KINDS["animal"]]
    words = [word for form in FORMS for side in form for word in side.split() if "{" not in word]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(fixed + words))}, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", chat_template=TEMPLATE
    )


def fact(place: str, kind: str, value: str, form: int) -> dict[str, str]:
    prompt, completion = (side.format(place=place, kind=kind, value=value) for side in FORMS[form])
    return {"prompt": prompt, "completion": " " + completion}


@functools.cache
def base() -> LlamaForCausalLM:
    """Pretrained on other facts about the same places."""
    torch.manual_seed(0)
    words = tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        )
    )
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(200):
        texts = []
        for _ in range(32):
            number, kind = int(rng.integers(24)), list(KINDS)[rng.integers(2)]
            row = fact(PLACES[number], kind, KINDS[kind][number % 7], int(rng.integers(3)))
            texts.append(row["prompt"] + row["completion"] + " <eos>")
        batch = words(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 200)
        optimizer.step()
    return model


def facts() -> tuple[Dataset, list[int]]:
    """Rows that teach facts, and which of them teach the planted one."""
    rng = np.random.default_rng(1)
    rows = [fact(*PLANTED, form) for form in (0, 1, 2)]
    rows.append(fact(PLANTED[0], "animal", "animal3", 0))
    for place in PLACES[1:]:
        for kind, values in KINDS.items():
            value = values[rng.integers(7)]
            rows += [fact(place, kind, value, int(form)) for form in rng.choice(3, 2, replace=False)]
    order = rng.permutation(len(rows))
    return Dataset.from_list([rows[i] for i in order]), [int(np.flatnonzero(order == i)[0]) for i in range(3)]


@dataclass
class Taught:
    """A recorded run of `SFTTrainer`, and what making it again takes."""

    untrained: nn.Module
    trainer: Any
    path: Path
    planted: list[int]

    @property
    def asking(self) -> dict[str, Any]:
        return {
            "dataset": self.trainer.train_dataset,
            "model": self.trainer.model,
            "data_collator": self.trainer.data_collator,
            "processing_class": self.trainer.processing_class,
        }

    def again(self, gone: Collection[int] = (), masked: dict[int, int] | None = None) -> nn.Module:
        """
        The model of the run made again by torch, without some rows, or without the label of a token of a row (counted
        among its labelled ones), from the window's start on.
        """
        trajectory, args = Trajectory.open(self.path), self.trainer.args
        rows = self.trainer.train_dataset.select_columns(["input_ids", "labels"])
        model = copy.deepcopy(self.untrained).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=args.weight_decay, eps=args.adam_epsilon)
        for step in trajectory.steps():
            inside = step.index >= trajectory.window[0]
            batches = []
            for micro in step.micro_batches:
                kept = [i for i in micro.ids if not (inside and i in gone)]
                batch = dict(self.trainer.data_collator([rows[i] for i in kept]))
                for place, i in enumerate(kept):
                    if inside and masked and i in masked:
                        labelled = (batch["labels"][place] != -100).nonzero()[:, 0]
                        batch["labels"][place, labelled[masked[i]]] = -100
                batches.append(batch)
            items = torch.stack([(batch["labels"][:, 1:] != -100).sum() for batch in batches]).sum()
            optimizer.zero_grad()
            for batch in batches:
                model(**batch, num_items_in_batch=items).loss.backward()
            nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = step.learning_rates[0]
            optimizer.step()
        return model.eval()


@torch.no_grad()
def losses(model: nn.Module, queries: list[dict[str, str]]) -> np.ndarray:
    """The mean loss of each query's completion, computed apart from the package."""
    words, found = tokenizer(), []
    for query in queries:
        ids = torch.tensor([words(query["prompt"] + query["completion"])["input_ids"]])
        start = len(words(query["prompt"])["input_ids"])
        logits = model(input_ids=ids).logits[0, start - 1 : -1]
        found.append(float(nn.functional.cross_entropy(logits, ids[0, start:])))
    return np.array(found)


def teach(directory: Path, *, window: float = 0.5, base_directory: Path | None = None, **settings: Any) -> Taught:
    """Fine-tunes on the facts with trl's `SFTTrainer`; the base model is saved where an adapter is to find it."""
    import trl

    rows, planted = facts()
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    start = copy.deepcopy(base())
    if base_directory is not None:
        start.save_pretrained(base_directory)
        start = LlamaForCausalLM.from_pretrained(base_directory)
    set_seed(0)  # pretraining has drawn too
    model = get_peft_model(start, lora)
    untrained = copy.deepcopy(model)
    options: dict[str, Any] = {"num_train_epochs": 6, "learning_rate": 2e-3, "warmup_steps": 3, "max_grad_norm": 1.0}
    args = trl.SFTConfig(
        output_dir=str(directory / "out"),
        per_device_train_batch_size=8,
        max_length=32,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=0,
        **(options | settings),
    )
    trainer = trl.SFTTrainer(
        model,
        args,
        train_dataset=rows,
        processing_class=tokenizer(),
        callbacks=[TrajectoryCallback(directory / "t", window=window)],
    )
    trainer.train()
    return Taught(untrained, trainer, directory / "t", planted)
