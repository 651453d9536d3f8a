"""What is measured during a step: loss and weight of each micro-batch, and the gradient's norm before clipping."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_prune._core import compat
from hf_prune._core.devices import widest_float
from hf_prune.model.outputs import logits_in, loss_in
from hf_prune.record.row_statistics import RowStatistics


@dataclass
class Forward:
    """
    One forward pass of the model in training, as seen from outside.

    Args:
        num_items (`torch.Tensor` or `float`, *optional*): `num_items_in_batch` if it was passed.
        rows (`int`, *optional*): How many sequences its logits are of; `None` if it returned no logits.
        flattened (`bool`): Whether these are one sequence that holds several rows, told apart by their positions.
        loss (`torch.Tensor`, *optional*): The loss that it returned.
        gradient (`torch.Tensor`, *optional*): What arrived at the loss in the backward pass.
        backwards (`int`): How often a gradient arrived.
        statistics (`torch.Tensor`, *optional*): Statistics of the batch's rows, `(5, B)`, if they are recorded.
    """

    num_items: torch.Tensor | float | None
    rows: int | None
    flattened: bool = False
    loss: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    backwards: int = 0
    statistics: torch.Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """
    What was seen of one micro-batch.

    Args:
        forward (`Forward`, *optional*): The forward pass; `None` if there was not exactly one.
        objective (`torch.Tensor`, *optional*): What the gradient was taken of.
    """

    forward: Forward | None
    objective: torch.Tensor | None


class LossHook:
    """
    Measures d(objective) / d(loss that the model returned) for each micro-batch, and notes both.

    What the Trainer does to the loss (division by accumulation steps, multiplication by the number of processes, the
    fp16 scale) depends on the model's signature and on its arguments; the gradient that arrives at the loss is the
    product of all of it. trl's SFTTrainer computes its loss from the tokens' log-probabilities instead, and there the
    gradient is measured too. Nothing arrives if the Trainer trained on another loss.

    Args:
        label_names (`Sequence[str]`): The names under which the model may be given labels.
        statistics (`RowStatistics`, *optional*): What else to keep of each row.

    Attributes:
        inputs (`tuple[str, ...]`): The names of the tensors that the model was given in the first pass.
        labels (`dict[str, torch.Tensor]`): Those of them that are labels.
        statistics (`RowStatistics`, *optional*): What else is kept of each row.
    """

    def __init__(self, label_names: Sequence[str], statistics: RowStatistics | None = None) -> None:
        self.inputs: tuple[str, ...] = ()
        self.labels: dict[str, torch.Tensor] = {}
        self.statistics, self._label_names = statistics, label_names
        self._forwards: deque[Forward] = deque(maxlen=2)  # two are enough to see that there was more than one
        self._objective: torch.Tensor | None = None

    def attach(self, model: nn.Module) -> RemovableHandle:
        # torch_compile would trace the hook, and a tensor hook inside a graph is lost.
        return model.register_forward_hook(compat.no_dynamo(self._note), with_kwargs=True)

    def pop(self) -> Measured:
        """What was seen of the micro-batch just processed."""
        forwards, objective = list(self._forwards), self._objective
        self._forwards.clear()
        self._objective = None
        return Measured(forwards[0] if len(forwards) == 1 else None, objective)

    def observe_backward(self, loss: torch.Tensor) -> None:
        if self._forwards and loss.dim() == 0:
            loss = loss.detach()
            self._objective = loss.clone() if self._objective is None else self._objective + loss

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        given = _named(module, args) | kwargs
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        if not self.inputs:
            self.inputs = tuple(sorted(tensors.keys() - {"num_items_in_batch"}))
            self.labels = {name: tensors[name].detach().clone() for name in self._label_names if name in tensors}
        forward = Forward(given.get("num_items_in_batch"), _rows(output))
        forward.flattened = forward.rows == 1 and "position_ids" in given
        self._forwards.append(forward)
        if self.statistics is not None:
            labels = next((tensors[name] for name in self._label_names if name in tensors), None)
            forward.statistics = self.statistics(output, labels, forward.num_items)
        loss = _loss(output)
        if loss is not None:
            forward.loss = loss.detach().clone()  # the Trainer goes on with it in place
            loss.register_hook(_arrival(forward))
        tokens = _token_log_probs(output)
        if tokens is not None:
            if forward.loss is None:
                log_probs, labelled = tokens
                forward.loss = -torch.where(labelled, log_probs.detach(), 0).sum() / labelled.sum()
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
    found = torch.where(labelled, gradient, 0).to(widest_float(gradient.device))
    total, count = found.sum(), labelled.sum()
    even = ((found - total / count).abs() * labelled).max() <= 1e-3 * (total / count).abs()
    return torch.where(even, -total, torch.nan)


def _named(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """What was passed to a model by position, by name."""
    return dict(inspect.signature(module.forward).bind_partial(*args).arguments) if args else {}


def _rows(output: Any) -> int | None:
    """How many sequences a model's output is of."""
    logits = logits_in(output)
    if logits is None and isinstance(output, Mapping):
        logits = output.get("log_probs")
    return len(logits) if isinstance(logits, torch.Tensor) and logits.dim() > 0 else None


def _token_log_probs(output: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Log-probabilities and label mask in a model's output: from which trl's SFTTrainer computes its loss."""
    if not isinstance(output, Mapping):
        return None
    log_probs, labelled = output.get("log_probs"), output.get("label_mask")
    if isinstance(log_probs, torch.Tensor) and isinstance(labelled, torch.Tensor) and log_probs.requires_grad:
        return log_probs, labelled.bool()
    return None


def _loss(output: Any) -> torch.Tensor | None:
    """The scalar loss in a model's output, if a gradient can arrive at it."""
    loss = loss_in(output)
    return loss if loss is not None and loss.dim() == 0 and loss.requires_grad else None


class GradNormListener:
    """
    Keeps the norm that the Trainer's own clipping returns: of the whole gradient, unscaled, before it was clipped.

    Args:
        parameters (`Sequence[torch.Tensor]`): The trainable parameters. A call for others is not the Trainer's.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]):
        self._wanted = {id(parameter) for parameter in parameters}
        self._clipped: list[torch.Tensor] = []  # at the last call that was the Trainer's
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
        if self._are_clipped_again(parameters) or self._wanted <= {id(parameter) for parameter in parameters}:
            self._clipped, self._norm = parameters, norm

    def _are_clipped_again(self, parameters: list[torch.Tensor]) -> bool:
        return len(parameters) == len(self._clipped) > 0 and all(map(is_, parameters, self._clipped))


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
        label_names: Sequence[str],
        statistics: RowStatistics | None,
        undo: ExitStack,
    ) -> Hooks:
        """
        Puts both in place.

        Args:
            model (`nn.Module`): The model inside all wrappers.
            trainable (`Sequence[torch.Tensor]`): Its trainable parameters.
            label_names (`Sequence[str]`): The names under which it may be given labels.
            statistics (`RowStatistics`, *optional*): What to keep of each row.
            undo (`ExitStack`): Gets what takes them off.
        """
        hooks = cls(LossHook(label_names, statistics), GradNormListener(trainable))
        undo.callback(hooks.loss.attach(model).remove)
        compat.listen_to_backward(hooks.loss)
        undo.callback(compat.stop_listening_to_backward, hooks.loss)
        hooks.norm.attach()
        undo.callback(hooks.norm.detach)
        return hooks
