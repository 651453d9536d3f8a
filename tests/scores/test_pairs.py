"""Scores of pairs, of DPOTrainer and RewardTrainer: gradients alone, and a sentence where there is nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.nn.utils import vector_to_parameters

from hf_prune import Trajectory, TrajectoryCallback, TrajectoryError, UnsupportedError, add_scores
from tests.influence.test_pairs import Make, dpo, reward

makers = pytest.mark.parametrize("make", [dpo, reward])


def trained(make: Make, directory: Path, **record: Any) -> tuple[Any, Trajectory]:
    trainer = make(directory, callbacks=[TrajectoryCallback(directory / "t", window=1.0, **record)])
    trainer.train()
    return trainer, Trajectory.open(directory / "t")


def gradients(trainer: Any, theta: torch.Tensor) -> torch.Tensor:
    """Of the loss that trl's trainer has of each row alone, at these parameters."""
    model, found = trainer.model.eval(), []
    parameters = [p for p in model.parameters() if p.requires_grad]
    vector_to_parameters(theta, parameters)
    for row in range(len(trainer.train_dataset)):
        model.zero_grad()
        batch = trainer.data_collator([trainer.train_dataset[row]])
        trainer.compute_loss(model, batch).backward()
        found.append(torch.cat([p.grad.flatten() for p in parameters]))
    return torch.stack(found)


@makers
def test_grand_and_less_of_pairs_are_those_of_the_trainers_own_loss(make: Make, tmp_path: Path):
    trainer, record = trained(make, tmp_path)
    task = trainer.train_dataset.select(range(3))
    scored = add_scores(
        trainer.train_dataset, record, model=trainer.model, eval_dataset=task, data_collator=trainer.data_collator
    )
    before, after = (gradients(trainer, record.parameters_at(step)) for step in record.snapshot_steps)
    norms = (before.norm(dim=1) + after.norm(dim=1)) / 2
    np.testing.assert_allclose(scored["grand"], norms.numpy(), rtol=1e-3)
    wanted = record.step(0).learning_rates[0] * cosine_similarity(after, after[:3].mean(0, keepdim=True))
    np.testing.assert_allclose(scored["less"], wanted.numpy(), rtol=1e-2, atol=1e-4)
    assert not {"el2n", "forgetting", "aum", "loss", "confidence"} & set(scored.column_names)


@makers
def test_statistics_of_pairs_are_refused_with_what_there_is_in_their_place(make: Make, tmp_path: Path, caplog):
    trainer, record = trained(make, tmp_path, row_statistics=True)
    assert "has no label that the model could be sure of" in caplog.text
    with pytest.raises(TrajectoryError, match=r"pass model=trainer\.model for grand, and an eval_dataset for less"):
        add_scores(trainer.train_dataset, record)
    asking = {"model": trainer.model, "data_collator": trainer.data_collator}
    assert "grand" in add_scores(trainer.train_dataset, record, **asking).column_names
    with pytest.raises(UnsupportedError, match="No linear layer"):
        add_scores(trainer.train_dataset, record, last_layer=True, **asking)
