"""The cost of scoring, estimated from shapes before the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune.influence import features
from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.engine import WIDTH
from hf_prune.influence.sketch.store import SHARD
from hf_prune.influence.sketch.window_pass import step_bytes

# A sweep that holds no more than this is cheap, and exact.
SMALL_SWEEP = 1 << 29
# Vectors of the parameters' length that a dense sweep holds for each direction: its state, and what curvature takes.
_VECTORS_PER_DIRECTION = 10
# In units of a training step, for 64 directions: a step of the dense sweep, and a batch of per-example gradients.
_SWEEP_STEP, _GRADIENT_BATCH = 15.0, 2.0
# Likewise of the projected engine: a forward pass with what surrounds it, and each VJP of the logits.
_FORWARD, _VJP = 0.6, 0.9
# Vectors of the parameters' length that the window's pass holds: the model, two snapshots and the scales.
_VECTORS_OF_PASS = 12
# What transformers calls the losses of heads that have one label a row.
_OF_ROWS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification", "ForVideoClassification")
# Arrays of k sketches that the projected sweep holds: its state, and what a step takes.
_ARRAYS_OF_SWEEP = 5


@dataclass(frozen=True)
class ScoringCost:
    """
    Attributes:
        engine (`str`): the one that `engine="auto"` chooses.
        memory_bytes (`int`): what it holds apart from the batches' activations.
        disk_bytes (`int`): sketches, and the influence columns; without the dataset's own columns.
        steps (`float`): work in units of training steps; a guess, right within a factor of about 3.
    """

    engine: str
    memory_bytes: int
    disk_bytes: int
    steps: float


def scoring_cost(
    shapes: Sequence[tuple[int, ...]],
    vjps_per_visit: int,
    *,
    rows: int,
    directions: int,
    steps_per_epoch: int,
    window_steps: int,
    visits_per_step: float,
    segments: int,
) -> ScoringCost:
    """
    What [`add_influence`] will take.

    Args:
        shapes (`Sequence[tuple[int, ...]]`): of the recorded parameters.
        vjps_per_visit (`int`): see [`count_vjps`].
        rows (`int`): of the training dataset.
        directions (`int`): k.
        steps_per_epoch (`int`): optimizer steps of an epoch.
        window_steps (`int`): those of the window.
        visits_per_step (`float`): rows in a step.
        segments (`int`): of the window, one between two snapshots.
    """
    size = sum(map(math.prod, shapes))
    columns = 4 * rows * (directions + 2 + features.WIDTH)  # vectors, norm, loss, and features at most
    if scoring_bytes(size, directions) <= SMALL_SWEEP:
        return ScoringCost(
            engine="dense",
            memory_bytes=scoring_bytes(size, directions, segments),
            disk_bytes=columns,
            steps=window_steps * _SWEEP_STEP + segments * steps_per_epoch * _GRADIENT_BATCH,
        )
    sketch = CountSketch(shapes, WIDTH, seed=0, device=torch.device("meta"))
    width = sketch.width
    a_step = step_bytes(visits_per_step * vjps_per_visit, width)
    return ScoringCost(
        engine="projected",
        memory_bytes=int(
            4 * size * _VECTORS_OF_PASS
            + 4 * len(sketch.buffer)
            + 4 * SHARD * a_step
            + 4 * (directions + 1) * width * (_ARRAYS_OF_SWEEP + segments)
        ),
        disk_bytes=window_steps * a_step + columns,
        steps=window_steps * (_FORWARD + _VJP * vjps_per_visit),
    )


def count_vjps(model: nn.Module) -> int:
    """
    About how many VJPs each visit's logits take, before any batch is seen (see [`logit_factors`]).

    One for a class out of two or a single output; the gradient and some eigenvectors for more classes; the gradient
    and a label drawn from the model for tokens, and as many for a head that is not known.
    """
    base = model.get_base_model() if type(model).__name__.startswith("PeftModel") else model  # type: ignore[operator]
    if isinstance(base, PreTrainedModel) and base.loss_type in _OF_ROWS:
        return 1 if (base.config.num_labels or 2) <= 2 else 3
    return 2


def scoring_bytes(size: int, directions: int, segments: int = 0) -> int:
    """Memory that a dense sweep of `directions` over `size` parameters needs, the held-out loss's included."""
    return (directions + 1) * direction_bytes(size, segments)


def direction_bytes(size: int, segments: int = 0) -> int:
    """Memory that a dense sweep needs for one direction over `size` parameters, with the sums of its `segments`."""
    return (_VECTORS_PER_DIRECTION + segments) * size * 4
