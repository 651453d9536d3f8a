"""The cost of scoring, estimated from shapes before the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_prune._core import compat
from hf_prune.influence import features
from hf_prune.influence.sketch.count_sketch import CHUNK, CHUNK_OF_ACCELERATOR, CountSketch
from hf_prune.influence.sketch.engine import WIDTH
from hf_prune.influence.sketch.store import SHARD
from hf_prune.influence.sketch.window_pass import narrow_width, step_bytes
from hf_prune.model.token_head import (
    AT_ONCE,
    AT_ONCE_ON_ACCELERATOR,
    output_head,
    vocabulary_of,
)

# A sweep that holds no more than this is cheap, and exact.
SMALL_SWEEP = 1 << 29
# Vectors of the parameters' length that a dense sweep holds for each direction: its state, and what curvature takes.
_VECTORS_PER_DIRECTION = 10
# In units of a training step, for 64 directions: a step of the dense sweep, and a batch of per-example gradients.
_SWEEP_STEP, _GRADIENT_BATCH = 15.0, 2.0
# Likewise of the projected engine: a forward pass with what surrounds it, and each VJP of the logits.
_FORWARD, _VJP = 0.6, 0.9
# Vectors of the parameters' length that the window's pass holds: two snapshots with their second moments, their values
# in between, the scales, and what the checks before it take.
_VECTORS_OF_PASS = 14
# Copies of a step's sketches in single precision, and of those that are kept in a byte an entry.
_COPIES_OF_SKETCHES = 4
# Copies of the logits of two rows, of which the loss is told, and of those that are there at once afterwards.
_COPIES_OF_LOGITS, _CHUNKS_OF_LOGITS = 3, 4
# Heads of more classes are a vocabulary: for each direction the dense engine would hold all their logits.
VOCABULARY = 4096
# What transformers calls the losses of heads that have one label a row.
_OF_ROWS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification", "ForVideoClassification")
# Arrays of k sketches that the projected sweep holds: its state, and what a step takes.
_ARRAYS_OF_SWEEP = 5


@dataclass(frozen=True)
class PassMemory:
    """
    What the model itself takes when it is scored.

    Attributes:
        copied_bytes (`int`): parameters in single precision that the model has in another.
        vocabulary (`int`): classes of its token head, 0 without one.
        activation_bytes (`int`): what a micro-batch's graph holds, and the logits that are there at once; 0 if not
            known.
        logit_bytes (`int`): the logits of the two rows by which the loss is found, likewise.
        gradients_at_once (`int`): entries of per-example gradients that are there at once.
    """

    copied_bytes: int
    vocabulary: int
    activation_bytes: int
    logit_bytes: int
    gradients_at_once: int


@dataclass(frozen=True)
class ScoringCost:
    """
    Attributes:
        engine (`str`): the one that `engine="auto"` chooses.
        memory_bytes (`int`): what it holds at its peak; without the batches' activations where it is not known how
            many positions a row has.
        disk_bytes (`int`): sketches of the window, and the influence columns; without the dataset's own columns.
        least_disk_bytes (`int`): the same where only the sketches of one segment are kept at a time.
        steps (`float`): work in units of training steps; a guess, right within a factor of about 3.
    """

    engine: str
    memory_bytes: int
    disk_bytes: int
    least_disk_bytes: int
    steps: float


def scoring_cost(
    shapes: Sequence[tuple[int, ...]],
    vjps_per_visit: int,
    passes: PassMemory,
    *,
    rows: int,
    directions: int,
    steps_per_epoch: int,
    visits_per_step: float,
    marks: Sequence[int],
) -> ScoringCost:
    """
    What [`add_influence`] will take.

    Args:
        shapes (`Sequence[tuple[int, ...]]`): of the recorded parameters.
        vjps_per_visit (`int`): see [`count_vjps`].
        passes (`PassMemory`): what the model takes beside.
        rows (`int`): of the training dataset.
        directions (`int`): k.
        steps_per_epoch (`int`): optimizer steps of an epoch.
        visits_per_step (`float`): rows in a step.
        marks (`Sequence[int]`): the steps of the window's snapshots.
    """
    size, window_steps, segments = sum(map(math.prod, shapes)), marks[-1] - marks[0], len(marks) - 1
    columns = 4 * rows * (directions + 2 + features.WIDTH)  # vectors, norm, loss, and features at most
    if scoring_bytes(size, directions) <= SMALL_SWEEP and passes.vocabulary <= VOCABULARY:
        return ScoringCost(
            engine="dense",
            memory_bytes=passes.copied_bytes + passes.activation_bytes + scoring_bytes(size, directions, segments),
            disk_bytes=columns,
            least_disk_bytes=columns,
            steps=window_steps * _SWEEP_STEP + segments * steps_per_epoch * _GRADIENT_BATCH,
        )
    sketch = CountSketch(shapes, WIDTH, seed=0, device=torch.device("meta"))
    width = sketch.width
    vjps = visits_per_step * vjps_per_visit
    a_step = step_bytes(vjps, width)
    # Between two segments: cotangents of parameters and moments, the sums of each segment, and the answers so far.
    state = (directions + 1) * (4 * (2 * width + segments * (width + narrow_width(width))) + 8 * rows)
    sketching = passes.activation_bytes + 4 * vjps * width * _COPIES_OF_SKETCHES + SHARD * a_step
    sweeping = 4 * (directions + 1) * width * (_ARRAYS_OF_SWEEP + segments) + (SHARD + 4) * a_step
    return ScoringCost(
        engine="projected",
        memory_bytes=int(
            passes.copied_bytes
            + 4 * size * _VECTORS_OF_PASS
            + 4 * max(passes.gradients_at_once, max(map(math.prod, shapes)))
            + max(passes.logit_bytes, sketching, sweeping)
        ),
        disk_bytes=window_steps * a_step + columns,
        least_disk_bytes=max(b - a for a, b in pairwise(marks)) * a_step + columns + 2 * state,
        steps=window_steps * (_FORWARD + _VJP * vjps_per_visit),
    )


def pass_memory(model: nn.Module, device: torch.device, rows: int, positions: int) -> PassMemory:
    """
    What passes over the model take.

    Args:
        device (`torch.device`): where it will be.
        rows (`int`): rows in a micro-batch of the run.
        positions (`int`): tokens or patches of a row, 0 where that is not known.
    """
    head = output_head(model)
    vocabulary = vocabulary_of(model)
    # A layer's output, or what is made of it, is another's input, and both are kept for the backward pass.
    layers = (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head)
    numbers = sum(sum(_widths(layer)) for layer in layers)
    on_cpu = device.type == "cpu"
    at_once = min(AT_ONCE if on_cpu else AT_ONCE_ON_ACCELERATOR, rows * positions * vocabulary)
    return PassMemory(
        copied_bytes=sum(4 * p.numel() for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)),
        vocabulary=vocabulary,
        activation_bytes=4 * (rows * positions * numbers + at_once * _CHUNKS_OF_LOGITS),
        logit_bytes=4 * min(2, rows) * positions * vocabulary * _COPIES_OF_LOGITS,
        gradients_at_once=CHUNK if on_cpu else CHUNK_OF_ACCELERATOR,
    )


def _widths(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Inputs and outputs; of a quantised weight the shape tells neither."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def count_vjps(model: nn.Module) -> int:
    """
    About how many VJPs each visit's logits take, before any batch is seen (see [`logit_factors`]).

    One for a class out of two or a single output; the gradient and some eigenvectors for more classes; the gradient
    and a label drawn from the model for tokens, and as many for a head that is not known.
    """
    base = compat.base_model(model)
    if isinstance(base, PreTrainedModel) and base.loss_type in _OF_ROWS:
        return 1 if (base.config.num_labels or 2) <= 2 else 3
    return 2


def scoring_bytes(size: int, directions: int, segments: int = 0) -> int:
    """Memory that a dense sweep of `directions` over `size` parameters needs, the held-out loss's included."""
    return (directions + 1) * direction_bytes(size, segments)


def direction_bytes(size: int, segments: int = 0) -> int:
    """Memory that a dense sweep needs for one direction over `size` parameters, with the sums of its `segments`."""
    return (_VECTORS_PER_DIRECTION + segments) * size * 4
