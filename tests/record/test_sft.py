"""trl's SFTTrainer: the rows of each micro-batch, and the weight of their tokens in a loss of its own making."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_prune.influence import add_influence
from hf_prune.influence.queries import parameter_queries
from hf_prune.record import TrajectoryCallback
from hf_prune.trajectory import Trajectory

trl = pytest.importorskip("trl", reason="trl is an optional integration")
WORDS = 60


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i + 2 for i in range(WORDS)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS + 2,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_and_weights_of_a_run_of_sft_trainer(accumulation: int, tmp_path: Path):
    rows = Dataset.from_dict({"text": [" ".join([f"w{i}"] + ["w50"] * (1 + i % 5)) for i in range(24)]})
    trained = model()
    before = {name: value.detach().clone() for name, value in trained.named_parameters()}
    args = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    seen: list[list[int]] = []
    trained.register_forward_pre_hook(
        lambda module, inputs, kwargs: seen.append((kwargs["input_ids"][:, 0] - 2).tolist()), with_kwargs=True
    )
    trainer = trl.SFTTrainer(
        trained,
        args,
        train_dataset=rows,
        processing_class=tokenizer(),
        callbacks=[TrajectoryCallback(tmp_path / "t", window=1.0)],
    )
    trainer.train()
    step = Trajectory.open(tmp_path / "t").step(0)
    assert [list(micro.ids) for micro in step.micro_batches] == seen
    assert len(seen) == accumulation
    # The step again, from the record alone: the mean loss of each micro-batch's tokens times its measured factor.
    again = model()
    for micro in step.micro_batches:
        inputs = tokenizer()([rows[i]["text"] + " <eos>" for i in micro.ids], return_tensors="pt", padding=True)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        logits = again(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        mean = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        (micro.scale * mean).backward()
    for name, value in again.named_parameters():
        moved = dict(trained.named_parameters())[name].detach() - before[name]
        assert torch.allclose(moved, -0.1 * value.grad, rtol=1e-4, atol=1e-7), name
    if accumulation == 1:
        assert_influence_is_of_this_run(trainer, tmp_path / "t")


def assert_influence_is_of_this_run(trainer, record: Path) -> None:
    """The step's move is minus what the removal of its visits would do, summed, for all that trl patched."""
    trajectory = Trajectory.open(record)
    moved = trajectory.parameters_at(1) - trajectory.parameters_at(0)
    scored = add_influence(
        trainer.train_dataset,
        trajectory,
        model=trainer.model,
        data_collator=trainer.data_collator,
        directions=8,
        space="parameters",
        mode="visits",
    )
    asked = parameter_queries(moved, 8, seed=0) @ moved
    assert torch.allclose(-torch.tensor(scored["influence"]).sum(0), asked, rtol=1e-3, atol=1e-6)
