"""Losses of pairs, of a chosen and a rejected sequence: trl's DPOTrainer and RewardTrainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from hf_prune._core import compat
from hf_prune.model.batch import Batch
from hf_prune.model.forward import Forward, Inputs, logits_of
from hf_prune.model.losses import ExampleLoss

# Each row's sequences, the chosen one first.
SEQUENCES = 2
NO_STATISTICS = (
    "A row that is a pair of sequences has no label that the model could be sure of, so there is no el2n, forgetting, "
    "aum, loss or confidence: pass model=trainer.model for grand, and an eval_dataset for less."
)
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")

Settings = Mapping[str, Any]
# Of log-ratios to the reference `(B, 2)`, lengths `(B, 2)`, and the run's settings.
PairLoss = Callable[[torch.Tensor, torch.Tensor, Settings], torch.Tensor]


class PairScores(Forward):
    """
    The scores `(B, 2)` of each pair: the log-probabilities of its completions, or its rewards.

    Args:
        reference (`str`, *optional*): where those of a reference model come from: `"columns"` of the rows, or the
            model without its `"adapter"`; `None` for rewards.
    """

    takes_all = True

    def __init__(self, reference: str | None):
        self.reference = reference

    def __call__(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        logits = logits_of(model(**_sequences(inputs))).unflatten(0, (-1, SEQUENCES))
        if self.reference is None:
            return logits.flatten(2).squeeze(2)
        counted, ids = inputs["completion_mask"][..., 1:], inputs["input_ids"][..., 1:, None]
        logits = logits[..., :-1, :].float() if logits.dtype.itemsize == 2 else logits[..., :-1, :]
        log_probs = logits.gather(-1, ids).squeeze(-1) - logits.logsumexp(-1)
        return (log_probs * counted).sum(-1)

    def complete(self, model: nn.Module, inputs: Inputs) -> Inputs:
        _check(inputs, self.reference)
        if self.reference != "adapter":
            return inputs
        with torch.no_grad(), compat.without_adapter(model), compat.masks_for_vmap():
            return inputs | dict(zip(REFERENCE, self(model, inputs).unbind(1), strict=True))


@dataclass(frozen=True)
class DpoLoss(ExampleLoss):
    """
    The loss of trl's DPOTrainer (arXiv 2305.18290, and its variants), a function of the log-ratios to the reference.

    Attributes:
        settings (`Mapping`): of the run: `loss_type` and `loss_weights`, `beta` and others.
    """

    settings: Settings | None = None

    def of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert self.settings is not None
        ratios = logits - torch.stack([batch.given[name] for name in REFERENCE], 1)
        lengths = batch.given["completion_mask"].sum(-1).clamp(min=1).to(ratios)
        types = zip(self.settings["loss_type"], self.settings["loss_weights"], strict=True)
        parts = [weight * DPO_LOSSES[kind](ratios, lengths, self.settings) for kind, weight in types]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class RewardLoss(ExampleLoss):
    """
    The loss of trl's RewardTrainer (Bradley and Terry's), a function of the two rewards.

    Attributes:
        centering (`float`): the coefficient of the squared sum of rewards.
    """

    centering: float = 0.0

    def of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        margin = logits[:, 0] - logits[:, 1] - batch.given.get("margin", torch.zeros(()).to(logits))
        return -logsigmoid(margin) + self.centering * logits.sum(1).square()


def forward_of(pairs: Settings) -> Forward:
    """What is made of the model's outputs in a run whose manifest holds `pairs`."""
    return PairScores(pairs.get("reference"))


def loss_of(pairs: Settings) -> ExampleLoss:
    """The loss of each pair in such a run."""
    if pairs["trainer"] == "DPOTrainer":
        return DpoLoss(_of_batch, settings=pairs)
    return RewardLoss(_of_batch, centering=pairs["center_rewards_coefficient"] or 0.0)


def _of_batch(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    raise TypeError("The loss of a pair is a function of its whole batch.")


def _sequences(inputs: Inputs) -> Inputs:
    """What the model takes, pair after pair."""
    of_tokens = {name: value for name, value in inputs.items() if value.ndim == 3 and name != "completion_mask"}
    return {name: value.flatten(0, 1) for name, value in of_tokens.items()}


def _check(inputs: Inputs, reference: str | None) -> None:
    pairs = "input_ids" in inputs and inputs["input_ids"].ndim == 3 and inputs["input_ids"].shape[1] == SEQUENCES
    if not pairs or (reference is not None and "completion_mask" not in inputs):
        raise ValueError(
            "The run was trained on pairs, and these batches hold none; pass trainer.train_dataset with "
            "data_collator=trainer.data_collator."
        )
    if reference == "columns" and not set(REFERENCE) <= inputs.keys():
        raise ValueError(
            f"The rows lack the columns {' and '.join(REFERENCE)}, which precompute_ref_log_probs=True adds; pass "
            "trainer.train_dataset, and held-out rows as trainer.eval_dataset."
        )


def _margin(ratios: torch.Tensor, settings: Settings) -> torch.Tensor:
    return settings["beta"] * (ratios[:, 0] - ratios[:, 1])


def _sigmoid(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    return -logsigmoid(_margin(ratios, settings))


def _hinge(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    return torch.relu(1 - _margin(ratios, settings))


def _ipo(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    means = ratios / lengths
    return (means[:, 0] - means[:, 1] - 1 / (2 * settings["beta"])).square()


def _robust(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    margin, flipped = _margin(ratios, settings), settings["label_smoothing"]
    return (flipped * logsigmoid(-margin) - (1 - flipped) * logsigmoid(margin)) / (1 - 2 * flipped)


def _exo_pair(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    margin, noise = _margin(ratios, settings), torch.tensor(settings["label_smoothing"]).to(ratios)
    wins, loses = logsigmoid(margin), logsigmoid(-margin)
    return wins.exp() * (wins - torch.log1p(-noise)) + loses.exp() * (loses - noise.log())


def _nca_pair(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    chosen, rejected = (settings["beta"] * ratios).unbind(1)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _bco_pair(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    chosen, rejected = (settings["beta"] * ratios).unbind(1)
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def _sppo_hard(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    half = 0.5 / settings["beta"]
    return (ratios[:, 0] - half).square() + (ratios[:, 1] + half).square()


def _apo_zero(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    chosen, rejected = (settings["beta"] * ratios).sigmoid().unbind(1)
    return 1 - chosen + rejected


def _apo_down(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    return (settings["beta"] * ratios[:, 0]).sigmoid() + 1 - _margin(ratios, settings).sigmoid()


def _discopop(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    margin = _margin(ratios, settings)
    share = (margin / settings["discopop_tau"]).sigmoid()
    return -logsigmoid(margin) * (1 - share) + (-margin).exp() * share


def _sigmoid_norm(ratios: torch.Tensor, lengths: torch.Tensor, settings: Settings) -> torch.Tensor:
    return _sigmoid(ratios / lengths, lengths, settings)


DPO_LOSSES: dict[str, PairLoss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
}
"""Of trl's `loss_type`s those that are a mean over pairs."""
