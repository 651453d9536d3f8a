"""A cross-entropy of tokens from the hidden states before the head: cotangents without all the logits at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from hf_prune.influence.sketch.draw import draw
from hf_prune.influence.sketch.layer_rules import GradientSketcher
from hf_prune.model.batch import IGNORED
from hf_prune.model.token_head import in_chunks

# Groups of classes that share a token's random sign.
GROUPS = 256


@dataclass(frozen=True)
class Head:
    """
    The values of a token head.

    Attributes:
        weight (`torch.Tensor`, `(V, d)`): in the precision of its products.
        bias (`torch.Tensor`, *optional*, `(V,)`): likewise.
        places (`dict[str, int]`): where its recorded parameters are among all, by `"weight"` and `"bias"`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    places: dict[str, int]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The logits `(..., V)` of hidden states `(..., d)`, float32."""
        return functional.linear(states.to(self.weight.dtype), self.weight, self.bias).float()

    def pull(self, cotangents: torch.Tensor) -> torch.Tensor:
        """Cotangents of logits `(..., V)` to those of the hidden states `(..., d)`, float32."""
        return (cotangents.to(self.weight.dtype) @ self.weight).float()

    def add_outer(self, sketcher: GradientSketcher, left: torch.Tensor, states: torch.Tensor) -> None:
        """Adds `sum_t left_t states_t^T` for each example, left `(B, T, V)` and states `(B, T, d)`."""
        if "weight" in self.places:
            sketcher.add_outer(self.places["weight"], left, states.to(left.dtype))
        if "bias" in self.places:
            sketcher.add_vector(self.places["bias"], left.sum(1))

    def add_rows(self, sketcher: GradientSketcher, classes: torch.Tensor, states: torch.Tensor, share: float) -> None:
        """Adds `share sum_t e_t states_t^T` for one example, with the units e of `classes (n,)`."""
        if "weight" in self.places:
            sketcher.add_rows(self.places["weight"], classes[None], states[None].float() * share)
        if "bias" in self.places:
            counts = torch.bincount(classes, minlength=len(self.weight))
            sketcher.add_vector(self.places["bias"], counts[None] * share)

    def add_even(self, sketcher: GradientSketcher, states: torch.Tensor, share: float) -> None:
        """Adds the same for one example with all classes alike in the place of a unit."""
        even = states.new_full((1, 1, len(self.weight)), share / len(self.weight))
        if "weight" in self.places:
            sketcher.add_outer(self.places["weight"], even, states.sum(0)[None, None])
        if "bias" in self.places:
            sketcher.add_vector(self.places["bias"], even[0] * len(states))

    def add_dense(self, sketcher: GradientSketcher, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Adds a gradient `(V, d)`, which is overwritten, and `(V,)` for one example."""
        if "weight" in self.places:
            out, inner = sketcher.sketch.signs[self.places["weight"]]
            signed = weight.mul_(out[:, None]).mul_(inner)
            sketcher.add(self.places["weight"], slice(None), signed.flatten()[None])
        if "bias" in self.places:
            sketcher.add_vector(self.places["bias"], bias[None])


@dataclass(frozen=True)
class Tokens:
    """
    The tokens of a batch that its loss looks at, n in all, example by example.

    Attributes:
        states (`torch.Tensor`, `(n, d)`): what enters the head.
        classes (`torch.Tensor`, `(n,)`): what it is to tell.
        counted (`torch.Tensor`, `(B, T)`): where they are.
        items (`torch.Tensor`, `(B,)`): how many each example has, 1 for none.
        smoothing (`float`): what label smoothing spreads over all classes.
    """

    states: torch.Tensor
    classes: torch.Tensor
    counted: torch.Tensor
    items: torch.Tensor
    smoothing: float

    @classmethod
    def of(cls, hidden: torch.Tensor, targets: torch.Tensor, smoothing: float) -> Tokens:
        counted = targets != IGNORED
        return cls(hidden[counted], targets[counted], counted, counted.sum(1).clamp(min=1).float(), smoothing)

    def each(self, values: torch.Tensor) -> torch.Tensor:
        """One value an example `(B,)` to one a token, `(n, 1)`."""
        return values.repeat_interleave(self.counted.sum(1))[:, None]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """`(n, d)` to `(B, T, d)`, 0 elsewhere."""
        whole = values.new_zeros(*self.counted.shape, values.shape[1])
        whole[self.counted] = values
        return whole

    def slices(self) -> list[slice]:
        """The tokens of each example."""
        ends = self.counted.sum(1).cumsum(0).tolist()
        return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class TokenFactor:
    """
    A logit factor of a cross-entropy of tokens (see [`LogitFactor`]): at each token the chances p, less a mixture of
    classes, times the example's `shares`.

    Attributes:
        shares (`torch.Tensor`, `(B,)`): what it is multiplied by.
        along (`torch.Tensor`, `(n, d)`): its cotangents of the hidden states.
        rows (`list[tuple[torch.Tensor, float]]`): classes `(n,)` and the share of them by which the factor, before
            `shares`, is more than `p - e_y`.
        uniform (`float`): that by which it is less, of each class alike.
    """

    shares: torch.Tensor
    along: torch.Tensor
    rows: list[tuple[torch.Tensor, float]]
    uniform: float = 0.0


def token_factors(
    head: Head, tokens: Tokens, uniforms: torch.Tensor | None, base: GradientSketcher
) -> list[TokenFactor]:
    """
    The gradient of each example's mean loss, and with `uniforms (n,)` the factor of labels drawn by them.

    Both are `(p - e_y) W` but for rows of W, so that the logits are made and taken back once. On the way
    `sum_t (p_t - e_yt) h_t^T` goes to `base` where the head's own parameters are recorded.
    """
    along, drawn = [], []
    for example, part in _parts(head, tokens):
        states, classes = tokens.states[part], tokens.classes[part]
        errors = head.logits(states).softmax(-1)
        if uniforms is not None:
            drawn.append(draw(errors, uniforms[part]))
        errors[torch.arange(len(classes), device=classes.device), classes] -= 1
        along.append(head.pull(errors))
        if head.places:
            head.add_outer(base.example(example), errors[None], states[None])
    nothing = tokens.states.new_zeros(0, tokens.states.shape[1], dtype=torch.float32)
    errors, own = torch.cat([nothing, *along]), head.weight[tokens.classes].float()
    share, s = 1 / tokens.items, tokens.smoothing
    gradient = errors + s * (own - head.weight.mean(0, dtype=torch.float32)) if s else errors
    factors = [TokenFactor(share, gradient * tokens.each(share), [(tokens.classes, s)] if s else [], s)]
    if uniforms is not None:
        labels, share = torch.cat([tokens.classes[:0], *drawn]), tokens.items.rsqrt()
        along_drawn = (errors + own - head.weight[labels].float()) * tokens.each(share)
        factors.append(TokenFactor(share, along_drawn, [(tokens.classes, 1.0), (labels, -1.0)]))
    return factors


def head_sketches(head: Head, tokens: Tokens, factor: TokenFactor, sketcher: GradientSketcher) -> None:
    """Turns the sketches of `sum_t (p_t - e_yt) h_t^T` in `sketcher` into those of a factor's head gradients."""
    for example, part in enumerate(tokens.slices()):
        states, own = tokens.states[part].float(), sketcher.example(example)
        for classes, share in factor.rows:
            head.add_rows(own, classes[part], states, share)
        if factor.uniform:
            head.add_even(own, states, -factor.uniform)
    for values in (sketcher.scaled, sketcher.unscaled):
        if values is not None:
            values *= factor.shares[:, None]


def _parts(head: Head, tokens: Tokens) -> Iterator[tuple[int, slice]]:
    """Slices of the tokens, with the example that they belong to where that matters."""
    whole = tokens.slices() if head.places else [slice(0, len(tokens.classes))]
    for example, own in enumerate(whole):
        for part in in_chunks(own.stop - own.start, len(head.weight), head.weight.device):
            yield example, slice(own.start + part.start, own.start + part.stop)


@dataclass(frozen=True)
class VocabularySigns:
    """
    Random signs of all logits of many tokens, by few numbers: class v has its own sign, times that which a token has
    for the group of v. At one token they are independent; at two, those of one group agree in what they share.

    Attributes:
        own (`torch.Tensor`, `(V,)`): the signs of the classes.
        group (`torch.Tensor`, `(V,)`): their groups.
    """

    own: torch.Tensor
    group: torch.Tensor

    @classmethod
    def of(cls, width: int, seed: int, device: torch.device) -> VocabularySigns:
        generator = torch.Generator().manual_seed(seed)
        own = torch.randint(0, 2, (width,), generator=generator).float() * 2 - 1
        return cls(own.to(device), torch.randint(0, GROUPS, (width,), generator=generator).to(device))

    def whole(self, signs: torch.Tensor) -> torch.Tensor:
        """The signs `(..., V)` of tokens that have `signs (..., GROUPS)`."""
        return signs[..., self.group] * self.own

    def projected(self, weight: torch.Tensor) -> torch.Tensor:
        """`(GROUPS, d)`: what takes a token's signs to the cotangent of its hidden state."""
        total = torch.zeros(GROUPS, weight.shape[1], device=weight.device)
        for part in in_chunks(len(weight), weight.shape[1], weight.device):
            total.index_add_(0, self.group[part], weight[part].float() * self.own[part, None])
        return total
