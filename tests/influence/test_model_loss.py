"""A user's loss(model, batch) -> (batch,): rows of several sequences, and models without logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses as st_losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import nn
from transformers import BertConfig, BertModel, Trainer

from hf_prune import RecordingError, TrajectoryCallback, add_influence
from hf_prune.influence.queries import parameter_queries
from hf_prune.trajectory import Trajectory
from tests import toys
from tests.influence.test_pairs import recorded, reward, scores, trl
from tests.record.test_sft import WORDS, tokenizer


def of_vectors(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch["x"])["logits"], batch["labels"], reduction="none")


@pytest.mark.parametrize(("engine", "curvature"), [("dense", "exact"), ("dense", "fisher"), ("projected", "fisher")])
def test_a_loss_of_the_model_gives_what_the_same_loss_of_logits_gives(
    engine: str, curvature: str, tmp_path: Path
) -> None:
    rows, model = toys.vectors(24), toys.Mlp()
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=2)
    scoring = {"model": model, "eval_dataset": rows.select(range(8)), "directions": 4, "space": "parameters"}
    scoring |= {"engine": engine, "curvature": curvature}
    known, own = (add_influence(rows, tmp_path / "t", loss=loss, **scoring) for loss in (None, of_vectors))
    for column in ("influence", "influence_eval_loss"):
        assert np.allclose(known[column], own[column], rtol=1e-3, atol=1e-3 * np.abs(known[column]).max())


def of_pairs(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """As trl's RewardTrainer has it, of sequences `(batch, 2, tokens)`."""
    inputs = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
    chosen, rejected = model(**inputs).logits.view(-1, 2).unbind(1)
    return -nn.functional.logsigmoid(chosen - rejected - batch["margin"])


def one_after_the_other(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    chosen, rejected = (
        model(batch["input_ids"][:, side], attention_mask=batch["attention_mask"][:, side]).logits[:, 0]
        for side in (0, 1)
    )
    return -nn.functional.logsigmoid(chosen - rejected - batch["margin"])


@pytest.mark.parametrize("loss", [of_pairs, one_after_the_other])
def test_a_loss_of_the_model_may_be_of_several_sequences(loss: Any, tmp_path: Path) -> None:
    trainer, trajectory = recorded(reward, tmp_path)
    scoring = {"eval_dataset": trainer.train_dataset.select(range(8)), "directions": 4, "space": "parameters"}
    known = scores(trainer, trajectory, engine="dense", **scoring)
    for engine, allowed in (("dense", 1e-4), ("projected", 0.02)):
        own = scores(trainer, trajectory, engine=engine, loss=loss, **scoring)
        found, truth = (np.array(scored["influence_eval_loss"]) for scored in (own, known))
        assert np.linalg.norm(found - truth) <= allowed * np.linalg.norm(truth)


def test_gauss_newton_is_refused_of_a_loss_of_the_model(tmp_path: Path) -> None:
    rows, model = toys.vectors(24), toys.Mlp()
    toys.train(model, rows, tmp_path / "out", [TrajectoryCallback(tmp_path / "t")], num_train_epochs=1)
    with pytest.raises(ValueError, match="has no logits for curvature='gauss-newton'; use 'exact' or 'fisher'"):
        add_influence(rows, tmp_path / "t", model=model, directions=4, loss=of_vectors, curvature="gauss-newton")
    with pytest.raises(ValueError, match=r"one loss per example, shape \(\d+,\), but it returned \(\)"):
        add_influence(
            rows, tmp_path / "t", model=model, directions=4, loss=lambda model, batch: of_vectors(model, batch).mean()
        )


def sentences(directory: Path, loss: type, rows: Dataset) -> SentenceTransformerTrainer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS + 2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(directory / "bert")
    tokenizer().save_pretrained(directory / "bert")
    inner = Transformer(str(directory / "bert"))
    model = SentenceTransformer(modules=[inner, Pooling(16)], device="cpu")
    args = SentenceTransformerTrainingArguments(
        str(directory / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        disable_tqdm=True,
    )
    return SentenceTransformerTrainer(
        model, args, train_dataset=rows, loss=loss(model), callbacks=[TrajectoryCallback(directory / "t", window=1.0)]
    )


def cosine(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    first, second = (
        model({name: batch[f"{side}_{name}"] for name in ("input_ids", "attention_mask")})["sentence_embedding"]
        for side in ("first", "second")
    )
    return (torch.cosine_similarity(first, second) - batch["label"]).square()


def test_a_sentence_embedding_loss_of_pairs_is_scored_with_its_own(tmp_path: Path) -> None:
    texts = [f"w{i} w{i % 5} w7" for i in range(12)]
    rows = Dataset.from_dict({"first": texts, "second": texts[::-1], "label": [i / 12 for i in range(12)]})
    trainer = sentences(tmp_path, st_losses.CosineSimilarityLoss, rows)
    trainer.train()
    trajectory = Trajectory.open(tmp_path / "t")
    scored = scores(trainer, trajectory, directions=8, space="parameters", engine="dense", loss=cosine)
    moved = trajectory.parameters_at(1) - trajectory.parameters_at(0)
    asked = (parameter_queries(moved, 8, seed=0) @ moved).numpy()
    assert np.linalg.norm(np.array(scored["influence"]).sum(0) + asked) <= 2e-3 * np.linalg.norm(asked)


def test_in_batch_negatives_are_refused_before_training(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"anchor": [f"w{i}" for i in range(8)], "positive": [f"w{i + 9}" for i in range(8)]})
    trainer = sentences(tmp_path, st_losses.MultipleNegativesRankingLoss, rows)
    with pytest.raises(RecordingError, match="MultipleNegativesRankingLoss compares each row with the others"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_trainer_whose_rows_have_no_losses_of_their_own_is_refused(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": ["w1"] * 8, "completion": [" w2"] * 8, "label": [True, False] * 4})
    args = trl.KTOConfig(
        output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False
    )
    trainer = Trainer(toys.Mlp(), args, train_dataset=rows, callbacks=[TrajectoryCallback(tmp_path / "t")])
    with pytest.raises(RecordingError, match=r"KTOTrainer's loss is no mean of losses of single rows \(each row is"):
        trainer.train()
