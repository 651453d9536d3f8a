"""
Optimizers that can be recorded and scored: one file each, with the adjoint of its update.

An optimizer is added by adding a file here; nothing else has to know of it.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hf_prune._core.reading import one_line
from hf_prune.errors import TrajectoryError, UnsupportedError
from hf_prune.optimizers.adjoint import ADJOINTS, KINDS, OptimizerAdjoint, adjoint_of, optimizer_name
from hf_prune.optimizers.layout import GroupLayout

__all__ = [
    "ADJOINTS",
    "KINDS",
    "GroupLayout",
    "OptimizerAdjoint",
    "adjoint_class",
    "adjoint_for",
    "adjoint_of",
    "optimizer_name",
]

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")


def adjoint_class(name: str) -> type[OptimizerAdjoint]:
    """
    The adjoint of an optimizer by its recorded name.

    Raises:
        `UnsupportedError`: if it has none here.
    """
    if name not in ADJOINTS:
        raise UnsupportedError(
            f"The optimizer {one_line(name)} has no adjoint here; train with one of {', '.join(ADJOINTS)}."
        )
    return ADJOINTS[name]


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
        `UnsupportedError`: if the optimizer, or an option of it, has no adjoint here.
        `TrajectoryError`: if its hyper-parameters are not there, or no numbers.
    """
    name, settings = optimizer["name"], optimizer["groups"]
    adjoint = adjoint_class(name)
    if any(group.get("maximize") for group in settings):
        raise UnsupportedError(f"{name} with maximize=True has no adjoint here; train with maximize=False.")
    try:
        return adjoint.from_groups(name, settings, GroupLayout(sizes, groups))
    except (LookupError, TypeError, ValueError) as error:
        raise TrajectoryError(
            f"The record's settings of {name} are damaged ({type(error).__name__} {one_line(error)}): copy the whole "
            "directory again, or record the run again."
        ) from error
