"""What gradients are multiplied by before they are sketched: the square root of the optimizer's metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_prune.model.replay import Replay

# Entries of a parameter that its mean scale is taken over.
SAMPLED = 4096


@dataclass(frozen=True)
class Scales:
    """
    Attributes:
        factors (`list[torch.Tensor | None]`): per parameter, a factor for each entry of its gradient (flat), or none.
        log_means (`torch.Tensor`, `(parameters,)`): the mean logarithm of each parameter's factors, on the CPU.
    """

    factors: list[torch.Tensor | None]
    log_means: torch.Tensor


@dataclass(frozen=True)
class ScaledSketches:
    """
    Sketches of vectors whose entries were scaled.

    Attributes:
        values (`torch.Tensor`, `(k, d)`): the sketches.
        log_scales (`torch.Tensor`, `(parameters,)`): the mean logarithm of each parameter's scales, on the CPU.
    """

    values: torch.Tensor
    log_scales: torch.Tensor


class GradientScales:
    """
    The scales of a run's gradients: the optimizer's denominator to the power -1/2.

    Between two gradients so scaled lies the update's own metric. What never had a gradient never moves, and gets 0:
    with a scale so large, embeddings that occur only in held-out rows would dominate the sketch.

    Args:
        replay (`Replay`): the recorded run.
    """

    def __init__(self, replay: Replay):
        self.replay = replay
        self._reference: list[torch.Tensor] = []
        self._never_updated: torch.Tensor | None = None

    def none(self) -> list[torch.Tensor | None]:
        """Leaves gradients as they are."""
        return [None] * len(self.replay.objective.sizes)

    def at(self, t: int) -> Scales:
        """
        Those of the steps around `t`.

        The mean is weighted by the second moment at the end of the window, where gradients are large.
        """
        replay, sizes = self.replay, self.replay.objective.sizes
        scale = replay.denominator(min(t, replay.last - 1))
        if scale is None:
            return Scales(self.none(), torch.zeros(len(sizes)))
        scale.rsqrt_()
        if self._never_updated is None:
            final = replay.second_moment(replay.last)
            self._never_updated, self._reference = final == 0, self._sampled(final + 1e-30)
        scale.masked_fill_(self._never_updated, 0)
        parts = zip(self._sampled(scale), self._reference, strict=True)
        means = torch.stack([(part.clamp(min=1e-30).log() * v).sum() / v.sum() for part, v in parts])
        return Scales(list(scale.split(sizes)), means.cpu())

    def _sampled(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Some thousand entries of each parameter, evenly spread."""
        return [part[:: max(1, len(part) // SAMPLED)] for part in vector.split(self.replay.objective.sizes)]
