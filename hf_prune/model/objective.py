"""The trained model as a function of one flat parameter vector: logits and per-example losses."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets.fingerprint import Hasher
from torch import nn
from torch.func import functional_call
from transformers import PretrainedConfig, PreTrainedModel

from hf_prune._core import compat, sharding
from hf_prune.errors import TrajectoryError, UnsupportedError
from hf_prune.model.batch import IGNORED, Batch
from hf_prune.model.forward import Applied, Forward, OfLoss, logits_of
from hf_prune.model.last_layer import inputs_of, last_linear
from hf_prune.model.losses import (
    FACTORED_LOGITS,
    ITS_OUTPUT,
    ExampleLoss,
    from_user,
    infer_loss,
    smoothed,
    takes_model,
)
from hf_prune.model.outputs import loss_in
from hf_prune.model.padding import Padding
from hf_prune.model.pairs import forward_of, loss_of
from hf_prune.model.quantized import replaced
from hf_prune.model.token_head import TokenHead, find_head, token_losses
from hf_prune.trajectory.manifest import Parameter


class Objective:
    """
    A private view of the model, in eval mode and with attention that can be differentiated twice.

    Args:
        model (`nn.Module`):
            Returns `logits`, and `loss` when it gets `labels`. The caller's model is left as it is: its modules are
            copied, and its parameters too where they are of another precision.
        parameters (`Sequence[Parameter]`):
            The recorded parameters; their values come as the flat vector `theta (p,)`, all others are the model's.
        loss (`Callable`, *optional*):
            A user's loss, of logits or `(model, batch) -> (B,)`; by default that of the pairs, or else found from the
            model's own loss on the first batch.
        label_names (`Sequence[str]`, *optional*, defaults to `("labels",)`): under which the model is given labels.
        smoothing (`float`, *optional*, defaults to 0): the Trainer's label smoothing.
        pairs (`Mapping`, *optional*): the manifest's, of a run whose rows are pairs of sequences.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): the precision of everything computed.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Parameter],
        *,
        loss: Callable[..., Any] | None = None,
        label_names: Sequence[str] = ("labels",),
        smoothing: float = 0.0,
        pairs: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        check_whole(model)
        self.half = any(p.dtype.itemsize <= 2 for p in model.parameters())
        self.model = _differentiable_copy(model, dtype)
        self.label_names, self.smoothing = tuple(label_names), smoothing
        self.names = [parameter.name for parameter in parameters]
        self.shapes = [parameter.shape for parameter in parameters]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.dtype = dtype
        given = dict(model.named_parameters())
        self.rounded = any(given[name].dtype.itemsize == 2 for name in self.names if name in given)
        own = dict(self.model.named_parameters())
        _check_parameters(own, parameters)
        self.device = own[self.names[0]].device
        recorded = set(self.names)
        self.fixed = {name: value.detach() for name, value in own.items() if name not in recorded}
        self.other_parameters = [name for name, value in self.fixed.items() if value.numel()]
        self.fixed |= {name: value.detach() for name, value in self.model.named_buffers()}
        self.forward, self._loss = _read(loss, pairs)
        self._applied = Applied(self.model, self.forward)
        self._uses_items: bool | None = None
        self.padding = Padding()
        self._width: int | None = None
        self._head: TokenHead | None = None
        self._seeks_head = True

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """The model in training mode while the block runs: dropout is on, BatchNorm takes the batch's own figures."""
        before = self.fixed
        self.fixed = before | {name: before[name].clone() for name, _ in self.model.named_buffers()}
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()
            self.fixed = before

    def digest(self) -> str:
        """Identifies what is taken from the model and not from the trajectory."""
        config = copy.copy(getattr(self.model, "config", None))
        text = ""
        if isinstance(config, PretrainedConfig):
            # Saving a checkpoint notes these, in one process of a launch alone; the model is the same.
            config.architectures = config.dtype = None
            text = config.to_json_string()
        hasher = hashlib.sha256()
        for name, value in self.fixed.items():  # one after the other: together they may be most of the memory
            hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            hasher.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return Hasher.hash([str(self.model), text, hasher.hexdigest()])

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
        return self.apply(self.unflatten(theta), inputs)

    def apply(self, values: Mapping[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same with these `values` of the recorded parameters, by name."""
        named = {f"model.{name}": value for name, value in (self.fixed | dict(values)).items()}
        with compat.masks_for_vmap():
            logits: torch.Tensor = functional_call(self._applied, named, (inputs,))
        return logits

    def token_head(self, inputs: dict[str, torch.Tensor]) -> TokenHead | None:
        """
        The layer that gives the logits of a vocabulary; `None` where they are few, or made of it in another way (with
        a soft cap, a scale, an adapter on the head). Found by comparing them for one row.
        """
        if self._seeks_head:
            self._seeks_head = False
            if self.forward.takes_all:
                return None
            row = {name: value[:1] for name, value in inputs.items()}
            training = self.model.training
            self.model.eval()  # BatchNorm takes no row alone in training mode
            try:
                with self.first_derivatives():
                    found = last_linear(self.model, lambda: self.logits(self.flatten(), row))
            finally:
                self.model.train(training)
            if found is not None and found[2].ndim == 3 and found[2].shape[2] > FACTORED_LOGITS:
                self._head = find_head(self.model, found[0])
        return self._head

    def outputs(self, values: Mapping[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What enters the token head `(B, T, d)`; the logits where there is none."""
        head = self.token_head(inputs)
        if head is None:
            return self.apply(values, inputs)
        found = inputs_of(head.layer, lambda: self.apply(values, inputs))
        assert found is not None, "a token head is called for every row"
        return found

    @contextmanager
    def first_derivatives(self) -> Iterator[None]:
        """
        Attention by fused kernels while the block runs: it needs no memory for the square of the length, and has
        neither forward-mode nor second derivatives.
        """
        with compat.fused_attention(self.model):
            yield

    def losses(self, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss of each example `(B,)` at `theta`."""
        return self.loss(batch).of(self.logits(theta, batch.inputs), batch)

    def losses_in_chunks(self, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The same without all the logits of a vocabulary at once; for autograd, not for `torch.func`."""
        loss, values = self.loss(batch), self.unflatten(theta)
        targets, head = loss.targets(batch.labels), self.token_head(batch.inputs)
        with self.first_derivatives():
            if targets is None or head is None:
                return loss.of(self.apply(values, batch.inputs), batch)
            hidden = self.outputs(values, batch.inputs)
        weight, bias = head.values(self.fixed | values)
        losses = token_losses(hidden, weight, bias, targets, loss.smoothing)
        return losses.sum(1) / loss.items(batch.labels).clamp(min=1)

    @torch.no_grad()
    def items(self, batch: Batch) -> torch.Tensor:
        """The number of items each example's loss is a mean over `(B,)`: 1, or its labelled tokens, or its weight."""
        items = self.loss(batch).items_of(batch, lambda: self.logits(self.flatten(), batch.inputs))
        return items.to(self.dtype)

    def loss(self, batch: Batch) -> ExampleLoss:
        """The per-example loss; found on the first batch by comparing with the model's own figure."""
        if self._loss is None:
            batch = _few(batch)
            outputs = self._labelled(batch)
            logits, loss = logits_of(outputs), loss_in(outputs)
            if loss is None:
                raise UnsupportedError(
                    f"{type(self.model).__name__} returns no loss for labels given as {', '.join(self.label_names)}; "
                    "pass loss=, a function (logits, labels, inputs) -> losses of shape (batch,)."
                )
            found = infer_loss(loss.mean(), logits, batch.labels, len(self.label_names))
            self._loss = smoothed(found, self.smoothing) if self.smoothing else found
        return self._loss

    @torch.no_grad()
    def _labelled(self, batch: Batch, **more: Any) -> Any:
        """What the model itself returns with labels."""
        several = len(self.label_names) > 1
        labels = batch.labels.unbind(1) if several else (batch.labels,)
        with compat.masks_for_vmap(), self.first_derivatives():
            return self.model(**(batch.inputs | dict(zip(self.label_names, labels, strict=True))), **more)

    def width(self, batch: Batch) -> int:
        """The number of logits of one example."""
        if self._width is None:
            with torch.no_grad(), self.first_derivatives():
                self._width = self.logits(self.flatten(), batch.part(slice(0, 1)).inputs)[0].numel()
        return self._width

    def uses_items(self, batch: Batch) -> bool:
        """Whether the model divides its loss by `num_items_in_batch`: measured, because signatures do not say."""
        if self._uses_items is None:
            batch = _few(batch)
            counts = (torch.tensor(count, device=self.device) for count in (1.0, 2.0))
            figures = [loss_in(self._labelled(batch, num_items_in_batch=count)) for count in counts]
            one, two = figures
            self._uses_items = one is not None and two is not None and not torch.allclose(one.mean(), two.mean())
        return self._uses_items


def _few(batch: Batch) -> Batch:
    """Of rows with a label a token the one with the fewest and the one with the most: enough to tell a loss by."""
    if batch.labels.ndim != 2 or batch.labels.is_floating_point():
        return batch
    counts = (batch.labels != IGNORED).sum(1)
    order = counts.argsort()[int((counts == 0).sum()) :]
    return batch.part(order[[0, -1]]) if len(order) > 1 else batch


def _differentiable_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """
    A copy in eval mode whose attention has forward-mode and second derivatives (fused kernels have neither).

    Nothing writes into parameters here, so that they share the memory of the caller's.
    """
    same = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters() if p.dtype == dtype}
    # transformers' own `to` refuses quantised models
    clone = nn.Module.to(copy.deepcopy(model, replaced(model) | same), dtype).eval()
    for module in clone.modules():
        # Hooks of the training run, and a `forward` that a Trainer patched in, belong to the caller's model.
        compat.remove_hooks(module)
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False  # type: ignore[assignment]
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


def _read(loss: Callable[..., Any] | None, pairs: Mapping[str, Any] | None) -> tuple[Forward, ExampleLoss | None]:
    """What is made of the model's outputs, and the loss of that, where it is known already."""
    if loss is not None and takes_model(loss):
        return OfLoss(loss), ITS_OUTPUT
    if pairs is None:
        return Forward(), None if loss is None else from_user(loss)
    if loss is not None:
        raise ValueError(
            f"{pairs['trainer']} trains on pairs, whose loss is no function of (logits, labels); leave out loss=, or "
            "pass one of (model, batch)."
        )
    return forward_of(pairs), loss_of(pairs)


def check_whole(model: nn.Module) -> None:
    """
    Refuses a model of which each process holds a part.

    Raises:
        `UnsupportedError`: for a model under FSDP2.
    """
    if any(sharding.is_sharded(p) for p in model.parameters()):
        raise UnsupportedError(
            "The model's parameters are spread over processes (FSDP2), and scoring needs them whole: score in a "
            "launch without FSDP, with the model that the Trainer saved, loaded by from_pretrained."
        )


def accepted_inputs(model: nn.Module) -> set[str]:
    """The names that the model's forward takes, as the Trainer's removal of unused columns sees them."""
    base = compat.base_model(model)
    return set(inspect.signature(base.forward).parameters)


def required_inputs(model: nn.Module) -> set[str]:
    """The names of those that it cannot do without."""
    base = compat.base_model(model)
    found = inspect.signature(base.forward).parameters.items()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, one in found if one.default is one.empty and one.kind in plain}
