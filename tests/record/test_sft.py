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
        assert_influence_is_of_this_run(trainer, model(), tmp_path / "t")


def assert_influence_is_of_this_run(trainer, untrained: GPT2LMHeadModel, record: Path) -> None:
    """The step made again without each row is what was predicted, for all that trl patched."""
    trajectory = Trajectory.open(record)
    rows, collator, step = trainer.train_dataset, trainer.data_collator, trajectory.step(0)
    scored = add_influence(
        rows, trajectory, model=trainer.model, data_collator=collator, directions=8, space="parameters", mode="visits"
    )

    def move(ids: list[int]) -> torch.Tensor:
        untrained.zero_grad()
        batch = collator([{name: rows[i][name] for name in ("input_ids", "labels") if name in rows[i]} for i in ids])
        # GPT-2's first tokens, which its loss does not look at, are counted too
        share = float((batch["labels"][:, 1:] != -100).sum() / (batch["labels"] != -100).sum())
        (share * untrained(**batch).loss).backward()
        return -0.1 * torch.cat([p.grad.flatten() for p in untrained.parameters()])  # type: ignore[union-attr]

    whole = move([int(i) for i in step.ids])
    queries = parameter_queries(whole, 8, seed=0)
    for left_out in step.ids:
        change = queries @ (move([int(i) for i in step.ids if i != left_out]) - whole)
        assert torch.allclose(torch.tensor(scored[int(left_out)]["influence"]), change, rtol=0.02, atol=1e-5)
