"""Held-out rows that are a task of their own: `method="target"`, and the warning that sends people there."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hf_prune.selection import select
from tests.selection.scored import scored


def test_target_keeps_the_rows_whose_removal_hurts_most():
    dataset = scored()
    effect = np.array(dataset["influence_eval_loss"])
    kept = select(dataset, 100, method="target").keep_indices
    assert len(kept) == 100
    assert effect[kept].min() > np.delete(effect, kept).max()


def test_target_needs_held_out_rows():
    with pytest.raises(ValueError, match="score with `add_influence"):
        select(scored().remove_columns("influence_eval_loss"), 0.5, method="target")


def test_a_choice_that_is_clearly_worse_for_the_held_out_rows_than_random_is_warned_of(caplog):
    dataset = scored()
    hard = np.array(dataset["influence_norm"])
    against = dataset.remove_columns("influence_eval_loss").add_column("influence_eval_loss", -hard)
    with caplog.at_level(logging.WARNING, "hf_prune"):
        select(against, 0.5)
        select(against, 0.5, method="target")
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "hf_prune"):
        select(against, 0.5, method="norm")  # keeps what raises the loss
    assert "pass method='target'; otherwise pass probe=" in caplog.text
