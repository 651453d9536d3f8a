"""What is measured during a step: the weight of each micro-batch, and the gradient's norm before clipping."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_prune._core import compat
from hf_prune.errors import RecordingError
from hf_prune.record.row_statistics import RowStatistics


@dataclass
class Forward:
    """
    One forward pass of the model in training, as seen from outside.

    Args:
        num_items (`torch.Tensor` or `float`, *optional*): `num_items_in_batch` if it was passed.
        gradient (`torch.Tensor`, *optional*): What arrived at the loss in the backward pass.
        backwards (`int`): How often a gradient arrived.
        statistics (`torch.Tensor`, *optional*): Statistics of the batch's rows, `(5, B)`, if they are recorded.
        refusal (`RecordingError`, *optional*): Why there are none; it is raised once the pass is over.
    """

    num_items: torch.Tensor | float | None
    gradient: torch.Tensor | None = None
    backwards: int = 0
    statistics: torch.Tensor | None = None
    refusal: RecordingError | None = None


class LossHook:
    """
    Measures d(objective) / d(loss that the model returned) for each micro-batch.

    What the Trainer does to the loss (division by accumulation steps, multiplication by the number of processes, the
    fp16 scale) depends on the model's signature and on its arguments; the gradient that arrives at the loss is the
    product of all of it. trl's SFTTrainer computes its loss from the tokens' log-probabilities instead, and there the
    gradient is measured too. Nothing arrives if the Trainer trained on another loss.

    Args:
        statistics (`RowStatistics`, *optional*): What else to keep of each row.
    """

    def __init__(self, statistics: RowStatistics | None = None) -> None:
        self._statistics = statistics
        self._forwards: deque[Forward] = deque(maxlen=2)  # two are enough to see that there was more than one

    def attach(self, model: nn.Module) -> RemovableHandle:
        # torch_compile would trace the hook, and a tensor hook inside a graph is lost.
        return model.register_forward_hook(compat.no_dynamo(self._note), with_kwargs=True)

    def pop(self) -> Forward | None:
        """The forward pass of the micro-batch just processed; `None` if there was not exactly one."""
        forwards = list(self._forwards)
        self._forwards.clear()
        return forwards[0] if len(forwards) == 1 else None

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        forward = Forward(kwargs.get("num_items_in_batch"))
        self._forwards.append(forward)
        if self._statistics is not None:
            try:
                forward.statistics = self._statistics(output, kwargs)
            except RecordingError as refusal:
                forward.refusal = refusal
        loss = _loss(output)
        if loss is not None:
            loss.register_hook(_arrival(forward))
        tokens = _token_log_probs(output)
        if tokens is not None:
            tokens[0].register_hook(_arrival(forward, tokens[1]))


def _arrival(forward: Forward, labelled: torch.Tensor | None = None) -> Callable[[torch.Tensor], None]:
    def arrive(gradient: torch.Tensor) -> None:
        if labelled is not None and forward.backwards:
            return  # it came through the model's own loss, where it was measured
        gradient = gradient.detach()
        forward.gradient = gradient.clone() if labelled is None else _of_mean_loss(gradient, labelled)
        forward.backwards += 1

    return arrive


def _of_mean_loss(gradient: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """The gradient at the mean loss of tokens from those at log-probabilities; NaN if tokens had unequal weights."""
    found = torch.where(labelled, gradient, 0).double()
    total, count = found.sum(), labelled.sum()
    even = ((found - total / count).abs() * labelled).max() <= 1e-3 * (total / count).abs()
    return torch.where(even, -total, torch.nan)


def _token_log_probs(output: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Log-probabilities and label mask in a model's output: from which trl's SFTTrainer computes its loss."""
    if not isinstance(output, Mapping):
        return None
    log_probs, labelled = output.get("log_probs"), output.get("label_mask")
    if isinstance(log_probs, torch.Tensor) and isinstance(labelled, torch.Tensor) and log_probs.requires_grad:
        return log_probs, labelled.bool()
    return None


def _loss(output: Any) -> torch.Tensor | None:
    """The scalar loss in a model's output, found as the Trainer finds it."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = output[0] if isinstance(output, (tuple, list)) and output else None
    if isinstance(loss, torch.Tensor) and loss.dim() == 0 and loss.requires_grad:
        return loss
    return None


class GradNormListener:
    """
    Keeps the norm that the Trainer's own clipping returns: of the whole gradient, unscaled, before it was clipped.

    Args:
        parameters (`Sequence[torch.Tensor]`): The trainable parameters. A call for others is not the Trainer's.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]):
        self._wanted = {id(parameter) for parameter in parameters}
        self._norm: torch.Tensor | None = None

    def attach(self) -> None:
        compat.listen_to_clipping(self)

    def detach(self) -> None:
        compat.stop_listening_to_clipping(self)

    def pop(self) -> torch.Tensor | None:
        """The last norm since the last call, or `None`."""
        norm, self._norm = self._norm, None
        return norm

    def observe(self, parameters: list[torch.Tensor], norm: torch.Tensor) -> None:
        if self._wanted <= {id(parameter) for parameter in parameters}:
            self._norm = norm


@dataclass(frozen=True)
class Hooks:
    """
    Args:
        loss (`LossHook`): At the model.
        norm (`GradNormListener`): At the clipping of gradients.
    """

    loss: LossHook
    norm: GradNormListener

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        trainable: Sequence[torch.Tensor],
        statistics: RowStatistics | None,
        undo: ExitStack,
    ) -> Hooks:
        """
        Puts both in place.

        Args:
            model (`nn.Module`): The model inside all wrappers.
            trainable (`Sequence[torch.Tensor]`): Its trainable parameters.
            statistics (`RowStatistics`, *optional*): What to keep of each row.
            undo (`ExitStack`): Gets what takes them off.
        """
        hooks = cls(LossHook(statistics), GradNormListener(trainable))
        undo.callback(hooks.loss.attach(model).remove)
        hooks.norm.attach()
        undo.callback(hooks.norm.detach)
        return hooks
