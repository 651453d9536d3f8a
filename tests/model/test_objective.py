"""What identifies a model is what it computes."""

from __future__ import annotations

from pathlib import Path

from transformers import BertForSequenceClassification, BertModel

from hf_prune.model.objective import Objective
from hf_prune.trajectory.manifest import Parameter
from tests import toys


def digest(model: BertForSequenceClassification) -> str:
    name, weight = next(model.named_parameters())
    return Objective(model, [Parameter(name=name, shape=tuple(weight.shape), group=0)]).digest()


def test_saving_a_checkpoint_leaves_a_model_what_it_is(tmp_path: Path):
    """In a launch one process saves, and notes its class in the config; the others load the same model."""
    toys.bert().base_model.save_pretrained(tmp_path / "base")
    assert BertModel.from_pretrained(tmp_path / "base").config.architectures == ["BertModel"]
    model = toys.bert()
    model.config = BertModel.from_pretrained(tmp_path / "base").config
    before = digest(model)
    model.save_pretrained(tmp_path / "checkpoint")
    assert model.config.architectures == ["BertForSequenceClassification"]
    assert digest(model) == before
    model.config.hidden_act = "relu"
    assert digest(model) != before
