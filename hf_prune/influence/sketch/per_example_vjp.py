"""Sketches of per-example gradients, by hooks on the unmodified layers or, where those do not apply, by `vmap`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.influence.sketch.count_sketch import CountSketch
from hf_prune.influence.sketch.forward_pass import ForwardPass, Inputs
from hf_prune.influence.sketch.layer_rules import GradientSketcher, rule_for
from hf_prune.influence.sketch.token_forward_pass import TokenForwardPass
from hf_prune.influence.sketch.token_loss import Head
from hf_prune.model.objective import Objective
from hf_prune.model.pairs import SEQUENCES

logger = logging.getLogger(__name__)

# Largest relative difference between the hooks' sum over examples and autograd's own gradient.
TOLERANCE = 1e-3


class PerExampleVjp:
    """
    Takes cotangents of a batch's logits to sketched gradients of the recorded parameters, example by example.

    Linear, convolution, normalisation and embedding layers give their per-example gradients from their input and
    their output's gradient: a plain forward and backward pass, whatever the attention. A parameter that no such layer
    owns (a class token, an RMSNorm's weight) gets one copy an example. On the first batch the sum over examples is
    compared with autograd's gradient, and one example's is asked for alone; where they differ, `vmap` computes all of
    them, more slowly.

    Args:
        objective (`Objective`): the model.
        sketch (`CountSketch`): of the recorded parameters.
        bf16 (`bool`): whether the hooked passes and products are made in bfloat16.
    """

    def __init__(self, objective: Objective, sketch: CountSketch, *, bf16: bool):
        self.objective, self.sketch, self.bf16 = objective, sketch, bf16
        self.hooked: bool | None = None
        places = {name: place for place, name in enumerate(objective.names)}
        by_id = {id(p): places[n] for n, p in objective.model.named_parameters() if n in places}
        self._layers: dict[nn.Module, dict[str, int]] = {}
        self._owners: dict[int, nn.Module] = {}
        for module in objective.model.modules():
            own = {n: by_id[id(p)] for n, p in module.named_parameters(recurse=False) if id(p) in by_id}
            if own and rule_for(module) is not None:
                self._layers[module] = own
            else:
                self._owners |= dict.fromkeys(own.values(), module)
        self._batch, self._sequences = 0, 1
        self.sketcher: GradientSketcher | None = None
        self._ranks: dict[nn.Module, int] = {}

    @contextmanager
    def forward(self, theta: torch.Tensor, inputs: Inputs) -> Iterator[ForwardPass]:
        """One forward pass at `theta`, which can be given several cotangents."""
        if self.hooked is None:
            self.hooked = self._agrees(theta, inputs)
            if not self.hooked:
                logger.warning(
                    f"{type(self.objective.model).__name__} has layers whose per-example gradients no hook computes; "
                    "they are computed by vmap, which takes several times as long."
                )
        if not self.hooked:
            yield ForwardPass(self, theta, inputs, None, {})
            return
        with self._hooks():
            found = self._run(theta, inputs, self.bf16)
        yield found

    def _run(self, theta: torch.Tensor, inputs: Inputs, bf16: bool) -> ForwardPass:
        self._batch = len(next(iter(inputs.values())))
        parameters = self.objective.unflatten(theta.detach())
        copies = {place: self._copies(parameters[self.objective.names[place]], place) for place in self._owners}
        each = {self.objective.names[place]: self._by_sequence(copy) for place, copy in copies.items()}
        autocast = torch.autocast(self.objective.device.type, torch.bfloat16, enabled=bf16)
        head = self.objective.token_head(inputs)
        with torch.enable_grad(), autocast, self.objective.first_derivatives():
            outputs = self.objective.outputs(parameters | each, inputs).float()
        if head is None:
            return ForwardPass(self, theta, inputs, outputs, copies)
        weight, bias = head.values(self.objective.fixed | parameters)
        if bf16:
            weight, bias = weight.to(torch.bfloat16), None if bias is None else bias.to(torch.bfloat16)
        own = Head(weight, bias, self._layers.get(head.layer, {}))
        return TokenForwardPass(self, theta, inputs, outputs, copies, head=own)

    def _copies(self, value: torch.Tensor, place: int) -> torch.Tensor:
        """One copy of a parameter per example: in its first dimension if that is 1, else in a new one."""
        if value.ndim > 1 and value.shape[0] == 1:
            return value.expand(self._batch, *value.shape[1:]).requires_grad_()
        between = self._ranks.get(self._owners[place], value.ndim + 1) - 1 - value.ndim
        return (
            value.view(1, *[1] * between, *value.shape)
            .expand(self._batch, *[1] * between, *value.shape)
            .requires_grad_()
        )

    def _by_sequence(self, copy: torch.Tensor) -> torch.Tensor:
        """The copies for the sequences that go through the model, of which an example may have several."""
        return copy if self._sequences == 1 else copy.repeat_interleave(self._sequences, 0)

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._on_forward) for module in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_ranks(self, theta: torch.Tensor, inputs: Inputs) -> None:
        """Notes how many dimensions the owners' inputs have: copies of loose parameters broadcast over them."""

        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
            self._ranks |= {module: tensors[0].ndim} if tensors else {}

        handles = [owner.register_forward_pre_hook(note) for owner in set(self._owners.values())]
        try:
            with torch.no_grad(), self.objective.first_derivatives():
                self.objective.outputs(self.objective.unflatten(theta), inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _on_forward(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x = arguments[0].detach()
        rows = self._batch * self._sequences
        if output.shape[0] == 1 < rows:
            output = output.expand(rows, *output.shape[1:])
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output.register_hook(lambda d: self._on_output_grad(module, x, d))
        return output

    def _on_output_grad(self, module: nn.Module, x: torch.Tensor, d: torch.Tensor) -> None:
        assert self.sketcher is not None
        B = self._batch
        if len(d) != B:  # examples of several sequences or cut into windows, or tokens laid end to end
            x = x.expand(len(d), *x.shape[1:]) if len(x) == 1 else x
            inner = x.shape[d.ndim - 1 :]  # ids have no last dimension
            d, x = d.reshape(B, -1, d.shape[-1]), x.reshape(B, -1, *inner)
        rule = rule_for(module)
        assert rule is not None
        rule(module, x.expand(B, *x.shape[1:]), d, self._layers[module], self.sketcher)

    def _agrees(self, theta: torch.Tensor, inputs: Inputs) -> bool:
        """Whether the hooks' gradients, summed over examples, are autograd's."""
        if any(value.ndim != 1 and value.shape[0] != 1 for value in self._loose(theta)):
            return False
        inputs = {name: value[:4] for name, value in inputs.items()}
        cotangents, gradient = self._by_autograd(theta, inputs)
        none: list[torch.Tensor | None] = [None] * len(self.sketch.sizes)
        whole = self.sketch.sketch(gradient[None], none)[0]
        self._note_ranks(theta, inputs)
        limit = TOLERANCE * whole.norm()
        for self._sequences in (1, SEQUENCES):
            try:
                with self._hooks():
                    forward = self._run(theta, inputs, False)
                    found = forward.pull(cotangents, none).sum(0)
                    alone = torch.zeros_like(cotangents)
                    alone[0] = cotangents[0]
                    others = forward.pull(alone, none)[1:]
            except torch.OutOfMemoryError:
                raise  # the caller goes on with fewer rows
            except (RuntimeError, ValueError, IndexError):
                continue
            if (found - whole).norm() <= limit and others.norm() <= limit:
                return True
        return False

    def _by_autograd(self, theta: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Cotangents of a batch's outputs, and the gradient `(p,)` along them without hooks."""
        leaf = theta.detach().clone().requires_grad_()
        with torch.enable_grad(), self.objective.first_derivatives():
            outputs = self.objective.outputs(self.objective.unflatten(leaf), inputs)
        generator = torch.Generator(outputs.device).manual_seed(0)
        cotangents = torch.randn(outputs.shape, generator=generator, device=outputs.device, dtype=outputs.dtype)
        return cotangents, torch.autograd.grad(outputs, leaf, cotangents)[0]

    def _loose(self, theta: torch.Tensor) -> list[torch.Tensor]:
        parameters = self.objective.unflatten(theta)
        return [parameters[self.objective.names[place]] for place in self._owners]
