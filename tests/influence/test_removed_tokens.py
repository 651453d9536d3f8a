"""
A batch that loses a row has fewer tokens: the columns of a token loss are those of the row's real removal.

Truth is the recorded step, made again by the model itself and torch without the row: `(S - s_i) / (N - n_i)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    set_seed,
)
from transformers.trainer_pt_utils import LabelSmoother

from hf_prune import RecordingError, Trajectory, TrajectoryCallback, add_influence
from hf_prune.influence.queries import parameter_queries
from hf_prune.trajectory import Step
from tests import toys
from tests.influence.runs import Run, distance, record
from tests.influence.test_objectives import STEP, language_model, ragged, tagger, tokenizer

Batches = list[dict[str, torch.Tensor]]
Objective = Callable[[nn.Module, dict[str, torch.Tensor], torch.Tensor | None], torch.Tensor]


def own_loss(model: nn.Module, batch: dict[str, torch.Tensor], items: torch.Tensor | None) -> torch.Tensor:
    return model(**batch, num_items_in_batch=items).loss


def moved(
    model: nn.Module, step: Step, batches: Batches, objective: Objective, max_norm: float, shift: bool
) -> torch.Tensor:
    """The move of the parameters in a plain SGD step on these micro-batches."""
    model = copy.deepcopy(model).train()
    counts = [batch["labels"][:, 1:] if shift else batch["labels"] for batch in batches]
    items = torch.stack([(labels != -100).sum() for labels in counts]).sum()
    for batch, micro in zip(batches, step.micro_batches, strict=True):
        factor = micro.scale if micro.scale is not None else 1.0
        if len(batch["labels"]):
            (factor * objective(model, batch, None if micro.num_items is None else items)).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if max_norm:
        nn.utils.clip_grad_norm_(parameters, max_norm)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return -step.learning_rates[0] * torch.cat([gradient.flatten() for gradient in gradients])


def removals(
    model: nn.Module,
    rows: Dataset,
    directory: Path,
    collator: Any,
    *,
    engine: str = "dense",
    trained_with: Any = None,
    objective: Objective = own_loss,
    shift: bool = True,
    **arguments: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """What leaving out each visited row of a recorded step does to its move, along 20 directions: predicted, true."""
    before = copy.deepcopy(model)
    set_seed(0)
    args = toys.arguments(directory / "out", **(STEP | arguments))
    recorder = TrajectoryCallback(directory / "t", window=1.0)
    Trainer(model, args, train_dataset=rows, data_collator=trained_with or collator, callbacks=[recorder]).train()
    trajectory = Trajectory.open(directory / "t")
    step, norm = trajectory.step(0), args.max_grad_norm
    scored = add_influence(
        rows,
        trajectory,
        model=model,
        directions=20,
        space="parameters",
        mode="visits",
        data_collator=trained_with or collator,
        engine=engine,
    )

    def batches(without: int | None) -> Batches:
        kept = [[i for i in micro.ids if i != without] for micro in step.micro_batches]
        return [dict(collator([rows[i] for i in ids])) if ids else {"labels": torch.empty(0, 2)} for ids in kept]

    whole = moved(before, step, batches(None), objective, norm, shift)
    torch.testing.assert_close(whole, trajectory.parameters_at(1) - trajectory.parameters_at(0), rtol=1e-3, atol=1e-6)
    queries = parameter_queries(whole, 20, seed=0)
    true = [queries @ (moved(before, step, batches(int(i)), objective, norm, shift) - whole) for i in step.ids]
    return np.array(scored["influence"])[step.ids], torch.stack(true).numpy()


def llama() -> LlamaForCausalLM:
    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=toys.VOCABULARY, **config, max_position_embeddings=128, pad_token_id=0)
    )


def tagging(engine: str, directory: Path, **arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """A head that divides by each micro-batch's own tokens."""
    torch.manual_seed(0)
    collator = DataCollatorForTokenClassification(tokenizer())
    return removals(tagger(), ragged(label="tokens"), directory, collator, engine=engine, shift=False, **arguments)


def continuing(engine: str, directory: Path, **arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """A head that divides by the tokens of the whole step; labels come from the collator."""
    torch.manual_seed(0)
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    return removals(llama(), ragged(label="none"), directory, collator, engine=engine, **arguments)


@pytest.mark.parametrize("engine", ["dense", "projected"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.3])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("task", [tagging, continuing])
def test_a_row_leaves_with_its_tokens(
    task: Callable[..., Any], accumulation: int, max_grad_norm: float, engine: str, tmp_path: Path
):
    settings = {"gradient_accumulation_steps": accumulation, "max_grad_norm": max_grad_norm}
    predicted, true = task(engine, tmp_path, **settings)
    assert distance(predicted, true) < (2e-3 if engine == "dense" else 0.12)


def test_a_row_alone_in_its_batch_leaves_nothing(tmp_path: Path):
    predicted, true = continuing("dense", tmp_path, per_device_train_batch_size=1)
    assert distance(predicted, true) < 2e-3


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_that_counts_first_tokens_too_is_nearly_right(accumulation: int, tmp_path: Path):
    """GPT-2's, with tied weights: the Trainer counts a label of each row that its loss does not look at."""
    torch.manual_seed(0)
    collator, settings = DataCollatorForLanguageModeling(tokenizer(), mlm=False), {"shift": False}
    settings |= {"gradient_accumulation_steps": accumulation}
    predicted, true = removals(language_model(), ragged(label="none"), tmp_path, collator, **settings)
    assert distance(predicted, true) < 0.05


@pytest.mark.parametrize("accumulation", [1, 3])
def test_label_smoothing_of_tokens(accumulation: int, tmp_path: Path):
    def smoothed(model: nn.Module, batch: dict[str, torch.Tensor], items: torch.Tensor | None) -> torch.Tensor:
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        return LabelSmoother(0.1)(outputs, batch["labels"], shift_labels=True, num_items_in_batch=items)

    settings = {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": accumulation}
    predicted, true = continuing("dense", tmp_path, objective=smoothed, **settings)
    assert distance(predicted, true) < 2e-3


@pytest.mark.parametrize("more", [{}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}])
@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_rows_that_are_laid_end_to_end_are_scored_with_the_collator_that_does_it(
    engine: str, more: dict[str, Any], tmp_path: Path
):
    torch.manual_seed(0)
    rows = ragged(label="none").map(lambda row: {"labels": row["input_ids"]})
    flat, padded = DataCollatorWithFlattening(**more), DataCollatorForTokenClassification(tokenizer())
    # truth is of batches that are padded
    predicted, true = removals(llama(), rows, tmp_path, padded, trained_with=flat, engine=engine)
    assert distance(predicted, true) < (2e-3 if engine == "dense" else 0.12)


def test_rows_end_to_end_without_positions_are_refused_in_the_first_step(tmp_path: Path):
    rows = ragged(label="none").map(lambda row: {"labels": row["input_ids"]})
    flat = DataCollatorWithFlattening(return_position_ids=False)
    args, recorder = toys.arguments(tmp_path / "out"), TrajectoryCallback(tmp_path / "t")
    with pytest.raises(RecordingError, match=r"given 1 sequences for a micro-batch of 8 rows"):
        Trainer(llama(), args, train_dataset=rows, data_collator=flat, callbacks=[recorder]).train()


def expected_run(directory: Path) -> Run:
    torch.manual_seed(0)
    collator = DataCollatorForTokenClassification(tokenizer())
    rows, held_out = ragged(40, label="tokens"), ragged(8, label="tokens")
    return record(tagger(), rows, held_out, directory, collator=collator, num_train_epochs=6)


@pytest.mark.usefixtures("second_moment_is_held")
def test_in_expectation_the_shares_of_tokens_balance_and_engines_agree(tmp_path: Path):
    run = expected_run(tmp_path)
    dense = run.score("dense", "expected")
    # Without any row there is nothing left to weigh more: to first order all removals together change nothing.
    assert np.abs(dense.sum(0)).max() < 1e-4 * np.abs(dense).sum(0).min()
    assert distance(run.score("projected", "expected"), dense) < 0.3
    pool = run.score("dense", "expected", rows=run.rows.select(range(30)), train_dataset=run.rows)
    assert distance(pool, dense[:30]) < 1e-5


def counting(rows: int, seed: int) -> Dataset:
    """Rows that count up, each by a step of its own, of very unequal length."""
    rng = np.random.default_rng(seed)
    ids = [
        (2 + (rng.integers(30) + rng.integers(1, 4) * np.arange(rng.integers(3, 25))) % 30).tolist()
        for _ in range(rows)
    ]
    return Dataset.from_dict({"input_ids": ids})


def trained_again(untrained: nn.Module, run: Run, left_out: int | None) -> tuple[torch.Tensor, float]:
    """Parameters and held-out loss of the run made again by torch, without a row from the window's start on."""
    model, trajectory = copy.deepcopy(untrained).train(), Trajectory.open(run.path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    for step in trajectory.steps():
        gone = left_out if step.index >= trajectory.window[0] else None
        batches = [dict(run.collator([run.rows[i] for i in micro.ids if i != gone])) for micro in step.micro_batches]
        items = torch.stack([(batch["labels"][:, 1:] != -100).sum() for batch in batches]).sum()
        optimizer.zero_grad()
        for batch in batches:
            model(**batch, num_items_in_batch=items).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = step.learning_rates[0]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        loss = float(model(**run.collator(list(run.held_out))).loss)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), loss


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_predicted_removals_of_a_language_model_are_those_of_real_ones(engine: str, tmp_path: Path):
    torch.manual_seed(0)
    untrained = llama()
    settings = {"num_train_epochs": 6, "learning_rate": 5e-3, "max_grad_norm": 0.0, "gradient_accumulation_steps": 2}
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    run = record(
        copy.deepcopy(untrained),
        counting(48, seed=0),
        counting(16, seed=1),
        tmp_path,
        collator=collator,
        per_device_train_batch_size=4,
        **settings,
    )
    found = run.score(engine, directions=16, space="parameters")
    base, loss = trained_again(untrained, run, None)
    queries = parameter_queries(base, 16, seed=0)
    true = []
    for row in range(0, 48, 4):
        theta, changed = trained_again(untrained, run, row)
        true.append([*(queries @ (theta - base)).tolist(), changed - loss])
    predicted, real = found[::4], np.array(true)
    assert np.corrcoef(predicted[:, -1], real[:, -1])[0, 1] > 0.95
    assert distance(predicted[:, -1], real[:, -1]) < 0.4
