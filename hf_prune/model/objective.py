"""The trained model as a function of one flat parameter vector: logits and per-example losses."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets.fingerprint import Hasher
from torch import nn
from torch.func import functional_call
from transformers import PretrainedConfig, PreTrainedModel

from hf_prune._core import compat
from hf_prune.errors import TrajectoryError, UnsupportedError
from hf_prune.model.losses import ExampleLoss, from_user, infer_loss
from hf_prune.trajectory.manifest import Parameter


@dataclass(frozen=True)
class Batch:
    """Collated rows: the model's inputs without labels, and the labels; every tensor has the examples first."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def equals(self, other: Batch) -> bool:
        """Whether all tensors are the same."""
        left, right = (batch.inputs | {"": batch.labels} for batch in (self, other))
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    def part(self, rows: slice) -> Batch:
        return Batch({name: value[rows] for name, value in self.inputs.items()}, self.labels[rows])


class Objective:
    """
    A private copy of the model, in eval mode and with attention that can be differentiated twice.

    Args:
        model (`nn.Module`):
            Returns `logits`, and `loss` when it gets `labels`. It is copied; the caller's model is left as it is.
        parameters (`Sequence[Parameter]`):
            The recorded parameters; their values come as the flat vector `theta (p,)`, all others are the model's.
        loss (`Callable`, *optional*):
            `(logits, labels) -> losses (B,)`; by default found from the model's own loss on the first batch.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): the precision of everything computed.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Parameter],
        *,
        loss: Callable[..., Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.model = _differentiable_copy(model, dtype)
        self.names = [parameter.name for parameter in parameters]
        self.shapes = [parameter.shape for parameter in parameters]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.dtype = dtype
        own = dict(self.model.named_parameters())
        _check_parameters(own, parameters)
        self.device = own[self.names[0]].device
        recorded = set(self.names)
        self.fixed = {name: value.detach() for name, value in own.items() if name not in recorded}
        self.other_parameters = [name for name, value in self.fixed.items() if value.numel()]
        self.fixed |= {name: value.detach() for name, value in self.model.named_buffers()}
        self._loss: ExampleLoss | None = from_user(loss) if loss is not None else None
        self._uses_items: bool | None = None
        self._width: int | None = None

    def digest(self) -> str:
        """Identifies what is taken from the model and not from the trajectory."""
        config = getattr(self.model, "config", None)
        text = config.to_json_string() if isinstance(config, PretrainedConfig) else ""
        fixed = {name: value.cpu().numpy() for name, value in self.fixed.items()}
        return Hasher.hash([str(self.model), text, fixed])

    def flatten(self) -> torch.Tensor:
        """The model's own values of the recorded parameters, `(p,)`."""
        own = dict(self.model.named_parameters())
        return torch.cat([own[name].detach().flatten() for name in self.names])

    def unflatten(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(p,)` to the named parameters, as views."""
        parts = theta.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def logits(self, theta: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits `(B, ...)` at `theta`."""
        with compat.masks_for_vmap():
            outputs = functional_call(self.model, (self.unflatten(theta), self.fixed), kwargs=inputs)
        return logits_of(outputs)

    def losses(self, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss of each example `(B,)` at `theta`."""
        return self.loss(batch).losses(self.logits(theta, batch.inputs), batch.labels)

    def items(self, batch: Batch) -> torch.Tensor:
        """The number of items each example's loss is a mean over `(B,)`: 1, or its labelled tokens."""
        return self.loss(batch).items(batch.labels).to(self.dtype)

    def loss(self, batch: Batch) -> ExampleLoss:
        """The per-example loss; found on the first batch by comparing with the model's own figure."""
        if self._loss is None:
            with torch.no_grad(), compat.masks_for_vmap():
                outputs = self.model(**batch.inputs, labels=batch.labels)
            self._loss = infer_loss(_loss_of(outputs), logits_of(outputs).detach(), batch.labels)
        return self._loss

    def width(self, batch: Batch) -> int:
        """The number of logits of one example."""
        if self._width is None:
            with torch.no_grad():
                self._width = self.logits(self.flatten(), batch.part(slice(0, 1)).inputs)[0].numel()
        return self._width

    def uses_items(self, batch: Batch) -> bool:
        """Whether the model divides its loss by `num_items_in_batch`: measured, because signatures do not say."""
        if self._uses_items is None:
            figures = []
            for count in (1.0, 2.0):
                with torch.no_grad(), compat.masks_for_vmap():
                    items = torch.tensor(count, device=self.device)
                    figures.append(_loss_of(self.model(**batch.inputs, labels=batch.labels, num_items_in_batch=items)))
            self._uses_items = not torch.allclose(figures[0], figures[1])
        return self._uses_items


def _differentiable_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode whose attention has forward-mode and second derivatives (fused kernels have neither)."""
    clone = copy.deepcopy(model).to(dtype).eval()
    for module in clone.modules():
        # Hooks of the training run, and a `forward` that a Trainer patched in, belong to the caller's model.
        compat.remove_hooks(module)
        if isinstance(module, PreTrainedModel):
            module.set_attn_implementation("eager")
            module.config.use_cache = False
    for parameter in clone.parameters():
        parameter.grad = None
    return clone


def _check_parameters(own: Mapping[str, nn.Parameter], recorded: Sequence[Parameter]) -> None:
    missing = [parameter.name for parameter in recorded if parameter.name not in own]
    if missing:
        raise TrajectoryError(
            f"The trajectory is of another model: it holds {missing[0]!r}, which this model does not "
            f"have ({len(missing)} such parameters); pass the model that was trained."
        )
    for parameter in recorded:
        shape = tuple(own[parameter.name].shape)
        if shape != tuple(parameter.shape):
            raise TrajectoryError(
                f"The trajectory is of another model: {parameter.name!r} was recorded with shape "
                f"{tuple(parameter.shape)} and has {shape} here; pass the model that was trained."
            )


def logits_of(outputs: Any) -> torch.Tensor:
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
    if not isinstance(logits, torch.Tensor):
        raise UnsupportedError("The model's logits must be one tensor with the examples first.")
    return logits


def _loss_of(outputs: Any) -> torch.Tensor:
    loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs.loss
    return loss.mean()


def accepted_inputs(model: nn.Module) -> set[str]:
    """The names that the model's forward takes, as the Trainer's removal of unused columns sees them."""
    base = model.get_base_model() if type(model).__name__.startswith("PeftModel") else model  # type: ignore[operator]
    return set(inspect.signature(base.forward).parameters)
