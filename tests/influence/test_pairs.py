"""Pairs of a chosen and a rejected sequence, trained by trl's DPOTrainer and RewardTrainer, scored without a loss=."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from hf_prune import RecordingError, TrajectoryCallback, UnsupportedError, add_influence
from hf_prune.influence.queries import parameter_queries
from hf_prune.model.pairs import DPO_LOSSES
from hf_prune.model.per_example import batch_gradient, example_gradients
from hf_prune.model.replay import Replay
from hf_prune.trajectory import Trajectory
from tests.record.test_sft import WORDS, tokenizer

trl = pytest.importorskip("trl", reason="trl is an optional integration")
ROWS = 16


def llama(kind: type = LlamaForCausalLM, **more: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "vocab_size": WORDS + 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        **more,
    }
    return kind(LlamaConfig(**config))


def pairs(rows: int = ROWS) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [f"w{i} w3 w{i % 7}" for i in range(rows)],
            "chosen": [" " + " ".join([f"w{30 + i % 9}"] * (1 + i % 4)) for i in range(rows)],
            "rejected": [f" w{20 + i % 3} w8" + " w7" * (i % 3) for i in range(rows)],
        }
    )


def arguments(**more: Any) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_steps": 1,
        **more,
    }


def dpo(directory: Path, *, callbacks: list[Any], rows: Dataset | None = None, lora: bool = True, **more: Any) -> Any:
    more = more if lora else {"precompute_ref_log_probs": True, **more}
    adapter = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(1)
    return trl.DPOTrainer(
        llama(),
        ref_model=None if lora else llama(initializer_range=0.05),  # not the model at step 0
        args=trl.DPOConfig(output_dir=str(directory / "out"), **arguments(**more)),
        train_dataset=pairs() if rows is None else rows,
        processing_class=tokenizer(),
        callbacks=callbacks,
        peft_config=adapter if lora else None,
    )


def reward(directory: Path, *, callbacks: list[Any], rows: Dataset | None = None, **more: Any) -> Any:
    rows = pairs() if rows is None else rows
    return trl.RewardTrainer(
        llama(LlamaForSequenceClassification, num_labels=1),
        trl.RewardConfig(output_dir=str(directory / "out"), **arguments(**more)),
        train_dataset=rows.add_column("margin", [i / 10 for i in range(len(rows))]),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


def dpo_without_adapter(directory: Path, **more: Any) -> Any:
    return dpo(directory, lora=False, **more)


Make = Callable[..., Any]
TRAINERS: dict[str, tuple[Make, dict[str, Any]]] = {
    "dpo": (dpo_without_adapter, {}),
    "dpo, adapter, accumulation": (dpo, {"gradient_accumulation_steps": 2}),
    "dpo, two losses": (dpo, {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.7, 0.4], "beta": 0.3}),
    "reward": (reward, {"center_rewards_coefficient": 0.01}),
}


def recorded(make: Make, directory: Path, **more: Any) -> tuple[Any, Trajectory]:
    trainer = make(
        directory, callbacks=[TrajectoryCallback(directory / "t", window=1.0, snapshots_per_epoch=4)], **more
    )
    trainer.train()
    return trainer, Trajectory.open(directory / "t")


def scores(trainer: Any, trajectory: Trajectory, **scoring: Any) -> Dataset:
    collator = trainer.data_collator
    return add_influence(
        trainer.train_dataset, trajectory, model=trainer.model, mode="visits", data_collator=collator, **scoring
    )


def replay_of(trainer: Any, trajectory: Trajectory) -> Replay:
    return Replay.of(trainer.train_dataset, trajectory, trainer.model, data_collator=trainer.data_collator)


@pytest.mark.parametrize("name", TRAINERS)
def test_the_rows_influences_add_up_to_what_the_step_moved(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, more = TRAINERS[name]
    with caplog.at_level(logging.WARNING, "hf_prune"):
        trainer, trajectory = recorded(make, tmp_path, **more)
        scored = scores(trainer, trajectory, directions=8, space="parameters", engine="dense")
    assert not any("loss=" in line or "computed again" in line for line in caplog.messages)
    moved = trajectory.parameters_at(1) - trajectory.parameters_at(0)
    asked = (parameter_queries(moved, 8, seed=0) @ moved).numpy()
    assert np.linalg.norm(np.array(scored["influence"]).sum(0) + asked) <= 2e-3 * np.linalg.norm(asked)


@pytest.mark.parametrize("name", TRAINERS)
def test_both_engines_say_the_same_of_pairs(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, more = TRAINERS[name]
    trainer, trajectory = recorded(make, tmp_path, **more)
    scoring = {"eval_dataset": trainer.train_dataset.select(range(8)), "directions": 4, "curvature": "none"}
    with caplog.at_level(logging.WARNING, "hf_prune"):
        dense, projected = (scores(trainer, trajectory, engine=engine, **scoring) for engine in ("dense", "projected"))
    assert not any("vmap" in line for line in caplog.messages)  # hooks tell the pairs apart
    for column in ("influence", "influence_eval_loss"):
        exact, sketched = np.array(dense[column]), np.array(projected[column])
        assert np.linalg.norm(sketched - exact) <= 0.01 * np.linalg.norm(exact)


def test_the_losses_of_dpo_are_the_trainers(tmp_path: Path) -> None:
    weights = [0.3 + 0.1 * place for place in range(len(DPO_LOSSES))]
    more = {"loss_type": list(DPO_LOSSES), "loss_weights": weights, "beta": 0.4, "label_smoothing": 0.1}
    trainer, trajectory = recorded(dpo_without_adapter, tmp_path, max_steps=2, learning_rate=1e-3, **more)
    replay = replay_of(trainer, trajectory)
    for step in trajectory.steps():
        losses = replay.objective.losses(replay.theta(step.index), replay.batch(step).batch)
        assert float(losses.mean()) == pytest.approx(step.micro_batches[0].loss, rel=1e-5)


@pytest.mark.parametrize("name", ["dpo", "dpo, adapter, accumulation", "reward"])
def test_the_gradient_of_a_pair_is_that_of_its_loss_in_the_trainer(name: str, tmp_path: Path) -> None:
    make, more = TRAINERS[name]
    trainer, trajectory = recorded(make, tmp_path, **more)
    replay = replay_of(trainer, trajectory)
    theta = replay.theta(0)
    torch.nn.utils.vector_to_parameters(
        theta.clone(), [dict(trainer.model.named_parameters())[name] for name in replay.objective.names]
    )
    for row in (2, 7):
        trainer.model.zero_grad()
        batch = trainer.data_collator([trainer.train_dataset[row]])
        trainer.compute_loss(trainer.model, batch).backward()
        own = dict(trainer.model.named_parameters())
        truth = torch.cat([own[name].grad.flatten() for name in replay.objective.names])
        found = example_gradients(replay.objective, theta, replay.rows.batch([3, row]))[1]
        assert torch.allclose(found, truth, rtol=1e-3, atol=1e-5 * float(truth.norm()))


def test_the_gradient_of_pairs_is_that_of_central_differences(tmp_path: Path) -> None:
    trainer, trajectory = recorded(dpo, tmp_path)
    replay = replay_of(trainer, trajectory)
    objective, theta = replay.objective, replay.theta(0).double()
    objective.model.double()
    objective.fixed = {n: v.double() if v.is_floating_point() else v for n, v in objective.fixed.items()}
    batch = replay.rows.batch(range(4))
    weights = torch.rand(4, dtype=torch.float64)
    gradient = batch_gradient(objective, theta, batch, weights)
    direction = torch.randn(len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [objective.losses(theta + sign * 1e-3 * direction, batch) @ weights for sign in (1, -1)]
    assert float((ends[0] - ends[1]) / 2e-3) == pytest.approx(float(gradient @ direction), rel=1e-3)


@pytest.mark.parametrize("name", ["dpo, adapter, accumulation", "reward"])
def test_rows_effects_are_those_of_training_without_them(name: str, tmp_path: Path) -> None:
    make = TRAINERS[name][0]
    more = {"beta": 0.5, "learning_rate": 0.05} if make is dpo else {"learning_rate": 2e-3}
    trainer, trajectory = recorded(make, tmp_path, max_steps=12, **more)
    held_out = make(tmp_path, callbacks=[], rows=pairs(24).select(range(16, 24))).train_dataset
    scored = scores(trainer, trajectory, eval_dataset=held_out, directions=4, engine="dense")
    predicted = np.array(scored["influence_eval_loss"])
    again = make(tmp_path, callbacks=[], **more)
    parameters = [dict(again.model.named_parameters())[p.name] for p in trajectory.manifest.parameters]

    def loss_without(left_out: int | None) -> float:
        """trl's own losses and torch's own update, step by step, and trl's loss of the held-out pairs."""
        torch.nn.utils.vector_to_parameters(trajectory.parameters_at(0), parameters)
        again.model.train()
        for step in trajectory.steps():
            kept = [int(i) for i in step.ids if i != left_out]
            batch = again.data_collator([trainer.train_dataset[i] for i in kept])
            again.model.zero_grad()
            (again.compute_loss(again.model, batch) * len(kept) / len(step.ids)).backward()
            with torch.no_grad():
                for parameter in parameters:
                    parameter -= step.learning_rates[0] * parameter.grad
        again.model.eval()
        with torch.no_grad():
            return float(again.compute_loss(again.model, again.data_collator(list(held_out))))

    whole = loss_without(None)
    rows = [0, 3, 5, 10]
    truth = np.array([loss_without(row) - whole for row in rows])
    assert np.linalg.norm(predicted[rows] - truth) <= 0.1 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"loss_type": ["aot"]}, "loss_type='aot' is no mean over pairs"),
        ({"loss_type": ["sigmoid", "sft"]}, "loss_type='sft' is no mean over pairs"),
        ({"use_weighting": True}, "use_weighting=True cannot be scored; train with use_weighting=False"),
        ({"lora": False, "precompute_ref_log_probs": False}, "pass precompute_ref_log_probs=True"),
    ],
)
def test_what_is_no_mean_over_pairs_is_refused_before_training(
    more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    trainer = dpo(tmp_path, callbacks=[TrajectoryCallback(tmp_path / "t")], **more)
    with pytest.raises(RecordingError, match=words):
        trainer.train()
    assert trainer.state.global_step == 0


def test_pairs_without_their_collator_or_reference_are_refused(tmp_path: Path) -> None:
    trainer, trajectory = recorded(dpo_without_adapter, tmp_path)
    rows, scoring = trainer.train_dataset, {"model": trainer.model, "directions": 4}
    with pytest.raises(ValueError, match=r"data_collator=trainer\.data_collator"):
        add_influence(rows, trajectory, **scoring)
    without = rows.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    with pytest.raises(ValueError, match="precompute_ref_log_probs=True"):
        add_influence(without, trajectory, data_collator=trainer.data_collator, **scoring)
    with pytest.raises(ValueError, match=r"leave out loss=, or pass one of \(model, batch\)"):
        add_influence(
            rows, trajectory, data_collator=trainer.data_collator, loss=lambda logits, labels: logits[:, 0], **scoring
        )


def test_a_reference_that_the_record_does_not_hold_is_refused(tmp_path: Path):
    trainer = trl.DPOTrainer(
        llama(),
        ref_model=llama(initializer_range=0.05),
        args=trl.DPOConfig(output_dir=str(tmp_path / "out"), **arguments(max_steps=1)),
        train_dataset=pairs(),
        processing_class=tokenizer(),
        callbacks=[TrajectoryCallback(tmp_path / "t")],
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    with pytest.raises(UnsupportedError, match="precompute_ref_log_probs=True"):
        add_influence(trainer, tmp_path / "t", directions=4)
