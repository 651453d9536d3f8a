"""What the gradients of rows do to queries, place by place of the run: the parts that their effects are sums of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class RowSlopes:
    """
    The effects of some rows at one place of the run: `factors_i <cotangent(q), grad l_i(theta)>`.

    What a row does by leaving its batch's denominator, or by a clipping that its length decides, is not among them.

    Attributes:
        theta (`torch.Tensor`, `(p,)`): the parameters.
        rows (`np.ndarray`, `(m,)`): the rows, by their numbers among those that are scored.
        factors (`torch.Tensor`, `(m,)`): minus the weights of their losses.
        queries (`range`): those that are known here.
        cotangent (`Callable`): a query's cotangent `(p,)`.
    """

    theta: torch.Tensor
    rows: np.ndarray
    factors: torch.Tensor
    queries: range
    cotangent: Callable[[int], torch.Tensor]
