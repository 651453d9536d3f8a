"""Adam and AdamW as bitsandbytes and torchao have them: paged, or with moments that are kept in 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch

from hf_prune.optimizers.adam import Adam
from hf_prune.optimizers.adjoint import adjoint_of
from hf_prune.optimizers.layout import GroupLayout


@adjoint_of("bitsandbytes.Adam32bit", "bitsandbytes.AdamW32bit")
class BitsandbytesAdam(Adam):
    """That of torch's AdamW: the update is the same, and bitsandbytes' weight decay is decoupled under both names."""

    @classmethod
    def second_moment_of(cls, state: Mapping[str, Any]) -> torch.Tensor | None:
        return state.get("state2")

    @classmethod
    def describe(cls, name: str, group: dict[str, Any]) -> dict[str, Any]:
        return super().describe(name, group) | {"decoupled_weight_decay": True}


@adjoint_of("bitsandbytes.Adam8bit", "bitsandbytes.AdamW8bit", "torchao.AdamW8bit")
class Adam8bit(BitsandbytesAdam):
    """
    The same, at the second moment that is left after rounding to 8 bits in blocks. It is always held: its derivative
    would be that of a moment without rounding.
    """

    @classmethod
    def from_groups(cls, name: str, groups: list[dict[str, Any]], layout: GroupLayout) -> Self:
        return replace(super().from_groups(name, groups, layout), held=True)

    @classmethod
    def second_moment_of(cls, state: Mapping[str, Any]) -> torch.Tensor | None:
        moment: Any = state.get("state2", state.get("exp_avg_sq"))
        if "qmap2" in state:
            from bitsandbytes.functional import dequantize_blockwise

            return dequantize_blockwise(moment, absmax=state["absmax2"], code=state["qmap2"], blocksize=_BLOCK)
        return moment.dequantize() if hasattr(moment, "dequantize") and type(moment) is not torch.Tensor else moment


# What bitsandbytes rounds together.
_BLOCK = 256
