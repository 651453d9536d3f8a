"""What a step's gradient becomes when one visit leaves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows


@dataclass(frozen=True)
class Removal:
    """
    The change of the gradient g of a step without visit i: `(r_i - 1) (G_i - a_i g_i) - a_i g_i`.

    G_i is the part of g whose denominator visit i counts in. A denominator that counts tokens is smaller without the
    visit's, so that the others weigh r_i times as much (`(S - s_i) / (N - n_i)` for a sum S of losses over N tokens);
    where it counts rows another row would take the visit's place, r_i is 1, and the denominator stays.

    Attributes:
        weights (`torch.Tensor`, `(B,)`): the visits' weights a.
        growth (`torch.Tensor`, `(B,)`): r.
        same (`torch.Tensor`, `(B, B)`): whether two visits count in one denominator, 1 or 0.
    """

    weights: torch.Tensor
    growth: torch.Tensor
    same: torch.Tensor

    def along(self, dots: torch.Tensor) -> torch.Tensor:
        """The changes `(k, B)` along cotangents, of which `dots (k, B)` are the products with each g_i."""
        own = self.weights * dots
        return (self.growth - 1) * (own @ self.same - own) - own

    def squares(self, parts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """
        The squared lengths `(B,)` of the changes.

        Args:
            parts (`torch.Tensor`, `(B,)`): `<G_i, g_i>`.
            lengths (`torch.Tensor`, `(B,)`): `|g_i|^2`.
        """
        more, own = self.growth - 1, self.growth * self.weights
        whole = (self.weights * parts) @ self.same
        return more**2 * whole - 2 * more * own * parts + own**2 * lengths


class ExpectedRemoval:
    """
    The influence `(m, k)` of rows in expectation over the order of batches: `-p_i sum_j <C_j, grad l_i>`,
    with p_i a row's share of the draws (1/n where all are drawn alike).

    1/n is a share of the training loss. Where that is a mean over tokens there are fewer without the row, and the
    others weigh more: then `grad l_i` is taken less the mean over all tokens. What rows that were not trained on need
    of those that were is computed once.

    Args:
        replay (`Replay`): the recorded run with its model and rows.
        dots (`Callable`): `sum_j <C_j, grad l_i>`, `(m, k)`, of some rows.
        batch_size (`int`): rows in one pass over rows.
    """

    def __init__(self, replay: Replay, dots: Callable[[Rows], np.ndarray], batch_size: int):
        self.replay, self.dots, self.batch_size = replay, dots, batch_size

    def __call__(self, rows: Rows) -> np.ndarray:
        found, shares = self.dots(rows), self.replay.item_shares(rows, self.batch_size)
        if self.replay.counts_tokens(rows.batch([0])):
            found = found - (shares @ found if rows is self.replay.rows else self.mean)
        return -shares[:, None] * found

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean over the training rows of what `dots` gives, `(k,)`."""
        trained = self.replay.rows
        return self.replay.item_shares(trained, self.batch_size) @ self.dots(trained)
