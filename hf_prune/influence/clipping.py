"""Gradient clipping in the adjoint: its slope, and the finite change when one row leaves the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_prune.influence.removal import Removal

# torch.nn.utils.clip_grad_norm_ divides by the norm plus this.
EPSILON = 1e-6


def clip_factor(norm: float, max_norm: float) -> float:
    """What a gradient of `norm` is multiplied by; a `max_norm` of 0 stands for no clipping."""
    return min(1.0, max_norm / (norm + EPSILON)) if max_norm > 0 else 1.0


def leave_one_out(
    norm: float,
    max_norm: float,
    slope: torch.Tensor,
    dots: torch.Tensor,
    along: torch.Tensor,
    removal: Removal,
) -> torch.Tensor:
    """
    The finite effect `(k, B)` of taking each visit out of the clipped gradient: `<c, f' (g + d_i) - f g>`, d_i being
    the change of g.

    Args:
        norm, max_norm (`float`): the norm that the run recorded before clipping, and the Trainer's `max_grad_norm`.
        slope (`torch.Tensor`, `(k,)`): `<c, g>` for cotangents c of the clipped gradient.
        dots (`torch.Tensor`, `(k, B)`): `<c, g_i>`.
        along (`torch.Tensor`, `(3, B)`): `<g, g_i>`, `|g_i|^2`, and `<G_i, g_i>` for the part of g that [`Removal`]
            names.
        removal (`Removal`): what leaves with each visit.
    """
    squares = norm**2 + 2 * removal.along(along[:1])[0] + removal.squares(along[2], along[1])
    factors = (max_norm / (squares.clamp(min=0).sqrt() + EPSILON)).clamp(max=1.0)
    return factors * (slope[:, None] + removal.along(dots)) - clip_factor(norm, max_norm) * slope[:, None]


@dataclass(frozen=True)
class Clip:
    """
    One step's clipping of the gradient g to `f g`, `f = max_norm / (|g| + 1e-6)`.

    Attributes:
        gradient (`torch.Tensor`, `(p,)`): g at the interpolated parameters.
        norm (`float`): the norm that the run recorded before clipping; it holds the parameters left out of the record.
        max_norm (`float`): the Trainer's `max_grad_norm`.
    """

    gradient: torch.Tensor
    norm: float
    max_norm: float

    @property
    def scale(self) -> float:
        return clip_factor(self.norm, self.max_norm)

    @property
    def _square(self) -> float:
        # With dropout the recomputed gradient may be the longer one; the projection must not overshoot.
        norm = max(self.norm, float(self.gradient.norm()))
        return norm * (norm + EPSILON)

    def adjoint(self, C: torch.Tensor) -> torch.Tensor:
        """Cotangents of the clipped gradient to those of the gradient: `f (C - (C g) g^T / (|g| (|g| + 1e-6)))`."""
        return (C - torch.outer(C @ self.gradient, self.gradient / self._square)).mul_(self.scale)

    def leave_one_out(
        self, C: torch.Tensor, dots: torch.Tensor, along: torch.Tensor, removal: Removal
    ) -> torch.Tensor:
        """
        The finite effect `(k, B)` of taking each visit out of the clipped gradient (see [`leave_one_out`]).

        Args:
            C (`torch.Tensor`, `(k, p)`): cotangents of the clipped gradient.
            dots (`torch.Tensor`, `(k, B)`): cotangents of the gradient before clipping times the examples' gradients.
            along (`torch.Tensor`, `(3, B)`): see [`leave_one_out`].
            removal (`Removal`): what leaves with each visit.
        """
        slope = C @ self.gradient
        straight = dots / self.scale + torch.outer(slope, along[0] / self._square)
        return leave_one_out(self.norm, self.max_norm, slope, straight, along, removal)
