"""LoRA: only what is trained is kept, and factors are those of the wrapped model's loss."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model

from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import Trajectory
from tests.record.test_weights import EVERY_STEP
from tests.toys import bert, tokens, train


def lora() -> torch.nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"], lora_dropout=0.0)
    return get_peft_model(bert(), config)


def test_only_trained_parameters_are_kept_and_their_step_comes_out_again(tmp_path: Path) -> None:
    data = tokens(24)
    callback = TrajectoryCallback(tmp_path / "t", **EVERY_STEP)
    train(
        lora(),
        data,
        tmp_path / "out",
        [callback],
        optim="sgd",
        num_train_epochs=1,
        learning_rate=0.1,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
    )
    trajectory = Trajectory.open(tmp_path / "t")
    names = [parameter.name for parameter in trajectory.manifest.parameters]
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("lora_A" in name for name in names)
    model = lora()
    trained = torch.nn.ParameterList([p for p in model.parameters() if p.requires_grad])
    for step in trajectory.steps():
        torch.nn.utils.vector_to_parameters(trajectory.parameters_at(step.index), trained)
        model.zero_grad()
        for batch in step.micro_batches:
            inputs = {name: torch.tensor(values) for name, values in data[list(batch.ids)].items()}
            (model(**inputs)["loss"] * batch.scale).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in trained])
        after = trajectory.parameters_at(step.index) - step.learning_rates[0] * gradient
        torch.testing.assert_close(after, trajectory.parameters_at(step.index + 1), rtol=1e-5, atol=1e-6)
