"""Adapters on a base in bfloat16, or in 4 or 8 bits, which are neither copied nor dequantised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM, TorchAoConfig

from hf_prune import RecordingError, TrajectoryCallback, add_influence
from hf_prune.influence.queries import parameter_queries
from hf_prune.model.objective import Objective
from hf_prune.model.quantized import FrozenLinear, replaced
from hf_prune.trajectory import Trajectory
from tests.influence.test_pairs import arguments, llama
from tests.record.test_sft import tokenizer

trl = pytest.importorskip("trl", reason="trl is an optional integration")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional integration")

BASES: dict[str, dict[str, Any]] = {
    "4 bits": {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    },
    "8 bits": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    "bfloat16": {"dtype": torch.bfloat16},
}


def base(name: str, directory: Path) -> LlamaForCausalLM:
    llama(hidden_size=64, intermediate_size=64, initializer_range=0.1).save_pretrained(directory / "base")
    return LlamaForCausalLM.from_pretrained(directory / "base", device_map="cpu", **BASES[name])


def dequantised(model: LlamaForCausalLM, directory: Path) -> LlamaForCausalLM:
    """The same model in float32, with bitsandbytes' own numbers."""
    whole = LlamaForCausalLM.from_pretrained(directory / "base", dtype=torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
                # a layer's outputs of the unit vectors are its weights; in training mode nothing is repacked
                weight = module.train()(torch.eye(module.in_features)).T
                whole.get_submodule(name).weight.copy_(weight)
    return whole


def texts() -> Dataset:
    return Dataset.from_dict({"text": [" ".join([f"w{i}"] + [f"w{50 - i % 3}"] * (1 + i % 5)) for i in range(16)]})


def sft(
    model: nn.Module, directory: Path, record: str, like: dict[str, torch.Tensor] | None = None, **more: Any
) -> Any:
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(1)
    trainer = trl.SFTTrainer(
        model,
        trl.SFTConfig(output_dir=str(directory / "out"), **arguments(**more)),
        train_dataset=texts(),
        processing_class=tokenizer(),
        peft_config=adapter,
        callbacks=[TrajectoryCallback(directory / record, window=1.0, snapshots_per_epoch=4)],
    )
    if like is not None:
        own = dict(trainer.model.named_parameters())
        with torch.no_grad():
            for name, value in like.items():
                own[name].copy_(value)
    return trainer


def adapter_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


def scores(trainer: Any, record: Path, **more: Any) -> Dataset:
    collator = trainer.data_collator
    return add_influence(
        trainer.train_dataset, record, model=trainer.model, mode="visits", data_collator=collator, **more
    )


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_influence_is_that_of_the_step_made_again_without_the_row(
    name: str, engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = sft(base(name, tmp_path), tmp_path, "t")
    model, before = trainer.model, adapter_of(trainer.model)
    with caplog.at_level(logging.WARNING, "hf_prune"):
        trainer.train()
        scored = scores(trainer, tmp_path / "t", directions=8, space="parameters", engine=engine, curvature="none")
    assert "computed again" not in caplog.text
    with torch.no_grad():
        for key, value in before.items():
            model.get_parameter(key).copy_(value)
    step, rows = Trajectory.open(tmp_path / "t").step(0), trainer.train_dataset

    def move(ids: list[int]) -> torch.Tensor:
        """By bitsandbytes' own passes, forward and backward."""
        model.train()
        model.zero_grad()
        batch = trainer.data_collator([{"input_ids": rows[i]["input_ids"]} for i in ids])
        labels = batch.pop("labels")
        logits = model(**batch).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        return -0.1 * torch.cat([model.get_parameter(key).grad.float().flatten() for key in before])

    whole = move([int(i) for i in step.ids])
    queries = parameter_queries(whole, 8, seed=0)
    truth = torch.stack([queries @ (move([int(i) for i in step.ids if i != out]) - whole) for out in step.ids])
    found = torch.tensor([scored[int(i)]["influence"] for i in step.ids])
    # gradients are rounded to bfloat16 in training, and activations to 8 bits where weights are
    assert float((found - truth).norm() / truth.norm()) <= 0.03


# With a small epsilon the first steps of Adam magnify what a base's rounding changes, some hundredfold.
RUNS = {
    "dense": {"optim": "sgd", "learning_rate": 0.2},
    "projected": {"optim": "adamw_torch", "learning_rate": 2e-3, "max_grad_norm": 1.0, "adam_epsilon": 1e-3},
}


@pytest.mark.parametrize("name", ["4 bits", "8 bits"])
@pytest.mark.parametrize("engine", RUNS)
def test_influence_on_a_quantised_base_is_that_on_the_same_base_in_float32(
    name: str, engine: str, tmp_path: Path
) -> None:
    quantised = base(name, tmp_path)
    whole = dequantised(quantised, tmp_path)
    trainer = sft(quantised, tmp_path, "t", max_steps=12, **RUNS[engine])
    in_float32 = sft(whole, tmp_path, "whole", like=adapter_of(trainer.model), max_steps=12, **RUNS[engine])
    found = []
    for one, record in ((trainer, "t"), (in_float32, "whole")):
        one.train()
        held_out = one.train_dataset.select(range(6))
        scored = scores(one, tmp_path / record, directions=8, eval_dataset=held_out, engine=engine)
        found.append([np.array(scored[column]) for column in ("influence", "influence_eval_loss")])
    for own, truth in zip(*found, strict=True):
        assert np.linalg.norm(own - truth) <= 0.05 * np.linalg.norm(truth)


def test_the_second_moment_is_held_where_an_adapter_is_kept_in_bfloat16(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a step moved such parameters by is rounded away, and with it the derivative that would be followed."""
    for name, follows in (("4 bits", False), ("bfloat16", True)):  # trl keeps the latter's adapter in float32
        trainer = sft(base(name, tmp_path), tmp_path, name, max_steps=4, optim="adamw_torch", learning_rate=2e-3)
        trainer.train()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hf_prune"):
            scores(trainer, tmp_path / name, directions=4, engine="dense", curvature="none")
        assert ("because parameters or moments were rounded" in caplog.text) is not follows


@pytest.mark.parametrize("name", ["4 bits", "8 bits"])
def test_the_base_is_neither_copied_nor_dequantised(name: str, tmp_path: Path) -> None:
    trainer = sft(base(name, tmp_path), tmp_path, "t")
    model = trainer.model
    trainer.train()
    objective = Objective(model, Trajectory.open(tmp_path / "t").manifest.parameters)
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    layers = {key: module for key, module in model.named_modules() if isinstance(module, kinds)}
    assert len(layers) == 7
    for key, layer in layers.items():
        own = objective.model.get_submodule(key)
        assert isinstance(own, FrozenLinear)
        assert own.weight.data_ptr() == layer.weight.data_ptr()
        assert own.weight.dtype == layer.weight.dtype


def test_weights_that_a_pass_without_gradients_has_repacked_are_read_as_well(tmp_path: Path) -> None:
    trainer = sft(base("4 bits", tmp_path), tmp_path, "t")
    trainer.train()
    scoring = {"directions": 4, "space": "parameters", "engine": "dense"}
    first = scores(trainer, tmp_path / "t", **scoring)
    trainer.model.eval()
    with torch.no_grad():
        trainer.model(torch.arange(8)[None])
    layer = next(m for m in trainer.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    packed = getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    assert packed == layer.support_avx512bf16_for_cpu  # only some CPUs do
    found = replaced(trainer.model)[id(layer)]
    assert torch.equal(found(torch.eye(layer.in_features)).T, found.decode(found.weight))
    again = scores(trainer, tmp_path / "t", draws=2, **scoring)  # not from the cache
    assert np.array_equal(first["influence"], again["influence"])


def test_weights_that_another_library_has_quantised_are_refused_before_training(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is an optional integration")
    llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base", device_map="cpu", quantization_config=config)
    trainer = sft(model, tmp_path, "t")
    with pytest.raises(RecordingError, match=r"quantised by torchao.*BitsAndBytesConfig"):
        trainer.train()
    assert trainer.state.global_step == 0
