"""One optimizer, one adjoint each: how a cotangent of the parameters goes back through an update."""

from __future__ import annotations

from typing import Any

from hf_prune.errors import UnsupportedError
from hf_prune.influence.optimizers.adam import Adam
from hf_prune.influence.optimizers.sgd import Sgd
from hf_prune.model.groups import GroupLayout

OptimizerAdjoint = Sgd | Adam
SUPPORTED = ("SGD", "Adam", "AdamW")


def adjoint_for(optimizer: dict[str, Any], sizes: list[int], groups: list[int]) -> OptimizerAdjoint:
    """
    The adjoint of a recorded optimizer.

    Args:
        optimizer (`dict`):
            `{"name": str, "groups": [hyper-parameters of each parameter group]}`, as in the manifest.
        sizes (`list[int]`):
            Number of elements of each recorded parameter, in the order of the flat vector.
        groups (`list[int]`):
            Parameter group of each recorded parameter.

    Raises:
        `UnsupportedError`: for an optimizer or an option that has no adjoint here.
    """
    name = optimizer["name"]
    if name not in SUPPORTED:
        raise UnsupportedError(f"The optimizer {name} has no adjoint here; train with one of {', '.join(SUPPORTED)}.")
    settings = optimizer["groups"]
    if any(group.get("maximize") for group in settings):
        raise UnsupportedError(f"{name} with maximize=True has no adjoint here; train with maximize=False.")
    layout = GroupLayout(sizes, groups)
    if name == "SGD":
        return Sgd.from_groups(settings, layout)
    return Adam.from_groups(settings, layout, decoupled=name == "AdamW")
