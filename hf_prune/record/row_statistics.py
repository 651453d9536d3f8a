"""What the model made of each row of a training batch: its loss, the label's probability and margin, and the like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional

from hf_prune.errors import RecordingError
from hf_prune.trajectory.visits import STATISTICS

_IGNORED = -100
# Logits processed at once: a language model's whole batch of probabilities would be gigabytes.
_CHUNK = 2**22
# A loss that is off by more than this share is another one.
_TOLERANCE = 0.05


class RowStatistics:
    """
    Turns a forward pass into statistics of each row, `(5, B)` in the order of `STATISTICS`, on the model's device.

    What an example's loss is (of its class, of its tokens, of the next tokens, of its values) is decided on the first
    batch by comparing with the loss that the model returned. A row of tokens gets means over its labelled tokens; rows
    of numbers have a loss and no other statistic, which are NaN.
    """

    def __init__(self) -> None:
        self._of_rows: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @torch.no_grad()
    def __call__(self, output: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """
        Args:
            output (`Any`): What the model returned.
            inputs (`Mapping[str, Any]`): What it was given.

        Raises:
            [`RecordingError`]: if there are no logits or labels, or none that fit the returned loss.
        """
        logits, labels = _field(output, "logits", 1), inputs.get("labels")
        if logits is None:
            return _of_log_probs(output)
        if not isinstance(labels, torch.Tensor):
            raise RecordingError(
                "The model was given no labels, so rows have no statistics: the Trainer keeps labels from it where it "
                "computes the loss itself; train on the model's own loss, or record without row_statistics."
            )
        if self._of_rows is None:
            self._of_rows = _find(logits, labels, _field(output, "loss", 0), inputs.get("num_items_in_batch"))
        return self._of_rows(logits, labels)


def _of_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _of_items(logits, labels.reshape(-1))


def _of_tokens(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    counted = labels != _IGNORED
    items = _of_items(logits.flatten(0, 1), labels.clamp(min=0).flatten()).view(-1, *labels.shape)
    return torch.where(counted, items, 0).sum(2) / counted.sum(1)


def _of_next_tokens(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _of_tokens(logits[:, :-1], labels[:, 1:])


def _of_values(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return _loss_alone((logits.float() - labels.view_as(logits).float()).square().flatten(1).mean(1))


def _of_bits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return _loss_alone(losses.mean(1))


def _loss_alone(losses: torch.Tensor) -> torch.Tensor:
    statistics = losses.new_full((len(STATISTICS), len(losses)), math.nan)
    statistics[0] = losses
    return statistics


def _of_log_probs(output: Any) -> torch.Tensor:
    """Of trl's SFTTrainer, whose model returns the log-probabilities `(B, T)` of the labels in the logits' place."""
    log_probs, labelled = _field(output, "log_probs"), _field(output, "label_mask")
    if log_probs is None or labelled is None or log_probs.ndim != 2:
        raise RecordingError(
            "The model returned no logits, so rows have no statistics: return them, or record without row_statistics."
        )
    counted = labelled.bool()
    first = _field(output, "is_top1")
    right = torch.full_like(log_probs, math.nan) if first is None else first.to(log_probs)
    unknown = torch.full_like(log_probs, math.nan)
    items = torch.stack([-log_probs, log_probs.exp(), unknown, unknown, right]).float()
    return torch.where(counted, items, 0).sum(2) / counted.sum(1)


def _of_items(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Statistics `(5, N)` of items with logits `(N, C)` and labels `(N,)`."""
    size = max(1, _CHUNK // logits.shape[1])
    if len(logits) <= size:
        return _of_chunk(logits, labels)
    return torch.cat([_of_chunk(*chunk) for chunk in zip(logits.split(size), labels.split(size), strict=True)], 1)


def _of_chunk(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Worked in one buffer, and from the other classes alone: 1 - p_y would cancel where the model is sure.
    others = logits.to(torch.float32, copy=True)
    place = labels[:, None]
    label = others.gather(1, place)[:, 0]
    rival = others.scatter_(1, place, -math.inf).amax(1)
    top = torch.maximum(rival, label)
    others.sub_(top[:, None]).exp_()
    rest, own = others.sum(1), (label - top).exp()
    total = rest + own
    error = torch.linalg.vector_norm(others, dim=1).hypot(rest) / total
    margin = label - rival
    return torch.stack([top - label + total.log(), own / total, margin, error, (margin > 0).float()])


def _find(
    logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor | None, num_items: Any
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The statistics whose losses have the mean that the model returned."""
    fitting = list(_fits(logits, labels))
    if len(fitting) == 1:
        return fitting[0]
    if fitting and loss is not None:
        off = {kind: _off(kind, logits, labels, float(loss), num_items) for kind in fitting}
        best = min(fitting, key=off.__getitem__)
        if off[best] <= _TOLERANCE * abs(float(loss)):
            return best
    raise RecordingError(
        f"The model's loss is not the mean of a cross-entropy or squared error of its logits {tuple(logits.shape)} "
        f"and labels {tuple(labels.shape)}, so rows have no statistics: record without row_statistics."
    )


def _fits(
    logits: torch.Tensor, labels: torch.Tensor
) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    whole = not labels.is_floating_point()
    if logits.ndim == 3 and whole and labels.shape == logits.shape[:2]:
        yield from (_of_tokens, _of_next_tokens)
    elif logits.ndim == 2 and whole and labels.numel() == len(logits) and logits.shape[1] > 1:
        yield _of_classes
    elif labels.numel() == logits.numel():
        yield _of_values
        if logits.ndim == 2 and labels.shape == logits.shape:
            yield _of_bits


def _off(kind: Callable[..., torch.Tensor], logits: torch.Tensor, labels: torch.Tensor, loss: float, n: Any) -> float:
    """How far the mean of these losses lies from the model's own, whichever count the model divided by."""
    losses = kind(logits, labels)[0].double()
    counts = torch.ones_like(losses)
    if kind in (_of_tokens, _of_next_tokens):
        counts = (labels[:, 1:] if kind is _of_next_tokens else labels).ne(_IGNORED).sum(1).double()
    total = float(torch.where(counts > 0, losses * counts, 0).sum())
    divisors = [float(counts.sum())] + ([] if n is None else [float(n)])
    return min(abs(total / divisor - loss) for divisor in divisors)


def _field(output: Any, name: str, place: int | None = None) -> torch.Tensor | None:
    """A tensor of a model's output, found as the Trainer finds it: by name, or in a tuple by its place."""
    value = None
    if isinstance(output, Mapping):
        value = output.get(name)
    elif isinstance(output, tuple | list) and place is not None and place < len(output):
        value = output[place]
    return value if isinstance(value, torch.Tensor) else None
