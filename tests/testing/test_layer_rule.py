"""Every layer rule is the gradient of each example, and the check sees one that is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_prune.influence.sketch import layer_rules
from hf_prune.testing import check_layer_rule

IDS = torch.tensor([[1, 2, 1], [0, 4, 4], [3, 0, 2]])
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (3, 4)),
    "linear of tokens": (lambda: nn.Linear(4, 3), (3, 5, 4)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (3, 5, 4)),
    "GPT-2's linear": (lambda: Conv1D(3, 4), (3, 5, 4)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 6, 6)),
    "convolution in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), (3, 4, 6, 6)),
    "layer norm": (lambda: nn.LayerNorm(4), (3, 5, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (3, 4, 6, 6)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (3, 4, 6, 6)),
    "embedding": (lambda: nn.Embedding(5, 4), IDS),
    "embedding with padding": (lambda: nn.Embedding(5, 4, padding_idx=0), IDS),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, x = LAYERS[name]
    return make(), x if isinstance(x, torch.Tensor) else torch.randn(x)


@pytest.mark.parametrize("name", LAYERS)
def test_the_rule_is_the_gradient_of_each_example(name: str):
    check_layer_rule(*made(name))


def test_every_rule_is_checked():
    assert {type(made(name)[0]) for name in LAYERS} == set(layer_rules.RULES)


def test_a_rule_that_mixes_examples_up_is_seen(monkeypatch: pytest.MonkeyPatch):
    right = layer_rules.RULES[nn.Linear]

    def wrong(module: nn.Module, x: torch.Tensor, d: torch.Tensor, *rest: Any) -> None:
        right(module, x.flip(0), d, *rest)

    monkeypatch.setitem(layer_rules.RULES, nn.Linear, wrong)
    with pytest.raises(AssertionError, match=r"The rule of Linear is not its gradient: example \d of 3 differs"):
        check_layer_rule(*made("linear of tokens"))


def test_a_layer_without_a_rule_is_told_so():
    with pytest.raises(AssertionError, match="Bilinear has no rule"):
        check_layer_rule(nn.Bilinear(2, 2, 2), torch.ones(2, 2))
