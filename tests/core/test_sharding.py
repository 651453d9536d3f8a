"""torch still does to sharded and wrapped modules what `hf_prune._core.sharding` expects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from transformers import BertForSequenceClassification

from hf_prune._core import sharding
from tests.toys import bert


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_parameters_are_known_and_made_whole(alone: DeviceMesh):
    model = bert()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert not any(sharding.is_sharded(p) for p in model.parameters())
    assert sharding.fully_sharded(model) == set()
    fully_shard(model.classifier, mesh=alone)
    own = dict(model.named_parameters())
    assert {name for name, p in own.items() if sharding.is_sharded(p)} == {"classifier.weight", "classifier.bias"}
    assert sharding.fully_sharded(model) == {id(own["classifier.weight"]), id(own["classifier.bias"])}
    assert sharding.is_split_over(own["classifier.weight"], 1)
    assert not sharding.is_split_over(own["classifier.weight"], 2)
    for name, p in own.items():
        assert type(sharding.whole(p.detach())) is torch.Tensor
        assert torch.equal(sharding.whole(p.detach()), before[name])
    copied = distribute_tensor(torch.ones(2), alone, [Replicate()])
    assert sharding.is_sharded(copied)
    assert not sharding.is_split_over(copied, 1)


def test_the_class_of_a_sharded_model_is_the_one_before(alone: DeviceMesh):
    model = bert()
    assert sharding.class_of(model) is BertForSequenceClassification
    fully_shard(model, mesh=alone)
    assert type(model) is not BertForSequenceClassification
    assert sharding.class_of(model) is BertForSequenceClassification


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_of_modules_are_not_part_of_a_name():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    before = [name for name, _ in model.named_parameters()]
    model[0][0] = checkpoint_wrapper(model[0][0])
    model[1] = torch.compile(model[1])
    wrapped = [name for name, _ in torch.compile(model).named_parameters()]
    assert wrapped != before
    assert [sharding.plain_name(name) for name in wrapped] == before
    assert sharding.plain_name("_orig_module.weight") == "_orig_module.weight"
