"""A Trainer in place of the dataset stands for its rows, model, collator and held-out rows; what is passed counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, default_data_collator

from hf_prune import TrajectoryCallback, add_influence, add_scores, diagnose
from hf_prune.model.trainer import Given
from tests import toys
from tests.influence.test_objectives import ragged, tokenizer


def trained(directory: Path, **options: Any) -> Trainer:
    recorder = TrajectoryCallback(directory / "t", row_statistics=True)
    args = toys.arguments(directory / "out", num_train_epochs=2)
    given = {"train_dataset": ragged(32), "eval_dataset": ragged(8), "processing_class": tokenizer()} | options
    trainer = Trainer(toys.bert(), args, callbacks=[recorder], **given)
    trainer.train()
    return trainer


def all_of(trainer: Trainer) -> dict[str, Any]:
    return {"model": trainer.model, "eval_dataset": trainer.eval_dataset}


def test_a_trainer_is_scored_as_all_that_it_was_given(tmp_path: Path):
    trainer = trained(tmp_path)
    scored = add_influence(trainer, tmp_path / "t", directions=8)
    spelled = add_influence(trainer.train_dataset, tmp_path / "t", directions=8, **all_of(trainer))
    assert scored[:] == spelled[:]
    assert scored._fingerprint == spelled._fingerprint
    assert "influence_eval_loss" in scored.column_names
    scores = add_scores(trainer, tmp_path / "t")
    assert {"el2n", "grand", "less"} <= set(scores.column_names)
    assert scores[:] == add_scores(trainer.train_dataset, tmp_path / "t", **all_of(trainer))[:]
    found = diagnose(trainer, tmp_path / "t", groups=(0.2,), steps=4)
    assert (
        found.to_dict()
        == diagnose(trainer.train_dataset, tmp_path / "t", groups=(0.2,), steps=4, **all_of(trainer)).to_dict()
    )


def test_what_is_passed_counts_before_what_the_trainer_has(tmp_path: Path):
    trainer = trained(tmp_path)
    other: Dataset = toys.tokens(8, seed=5)
    scored = add_influence(trainer, tmp_path / "t", eval_dataset=other, directions=8)
    spelled = add_influence(
        trainer.train_dataset, tmp_path / "t", model=trainer.model, eval_dataset=other, directions=8
    )
    assert scored[:] == spelled[:]
    assert scored["influence"][:] != add_influence(trainer, tmp_path / "t", directions=8)["influence"][:]


def test_a_trainer_is_what_a_pool_of_candidates_was_not_trained_on(tmp_path: Path):
    trainer = trained(tmp_path)
    pool = ragged(40).select(range(32, 40))
    scored = add_influence(pool, tmp_path / "t", train_dataset=trainer, directions=8)
    spelled = add_influence(pool, tmp_path / "t", train_dataset=trainer.train_dataset, directions=8, **all_of(trainer))
    assert len(scored) == 8
    assert scored[:] == spelled[:]


@pytest.mark.parametrize("eval_dataset", [None, {"one": ragged(8), "two": ragged(8)}])
def test_several_held_out_sets_are_none(eval_dataset: Any, tmp_path: Path):
    args = toys.arguments(tmp_path / "out")
    trainer = Trainer(toys.bert(), args, train_dataset=ragged(8), eval_dataset=eval_dataset)
    assert Given.of(trainer).eval_dataset is None


def test_a_collator_of_the_users_own_is_taken_and_the_trainers_own_is_not_needed(tmp_path: Path):
    words = tokenizer()
    for collator in (DataCollatorWithPadding(words, pad_to_multiple_of=8), lambda rows: {}):
        args = toys.arguments(tmp_path / "out")
        trainer = Trainer(toys.bert(), args, train_dataset=ragged(8), data_collator=collator, processing_class=words)
        assert Given.of(trainer).data_collator is collator
        assert Given.of(trainer, data_collator=default_data_collator).data_collator is default_data_collator
    assert Given.of(Trainer(toys.bert(), args, train_dataset=ragged(8))).data_collator is None
    assert Given.of(Trainer(toys.bert(), args, train_dataset=ragged(8), processing_class=words)).data_collator is None


def test_without_a_trainer_the_model_is_asked_for(tmp_path: Path):
    for function in (add_influence, diagnose):
        with pytest.raises(TypeError, match=r"pass model=trainer.model, or the trainer as the dataset\.$"):
            function(ragged(8), tmp_path / "t")
    with pytest.raises(TypeError, match=r"The trainer has no train_dataset: pass the rows"):
        add_influence(Trainer(toys.bert(), toys.arguments(tmp_path / "out")), tmp_path / "t")


def test_the_trainers_collator_gives_the_scores_of_one_that_is_passed(tmp_path: Path):
    trainer = trained(tmp_path, data_collator=DataCollatorWithPadding(tokenizer(), pad_to_multiple_of=8))
    scored = add_influence(trainer, tmp_path / "t", directions=8)
    plain = add_influence(trainer.train_dataset, tmp_path / "t", directions=8, **all_of(trainer))
    assert np.allclose(scored["influence"], plain["influence"], rtol=1e-3, atol=1e-6)
