"""Trainers with losses of their own making: those whose losses are known, and those where rows have none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn
from transformers import TrainingArguments

from hf_prune._core import compat
from hf_prune.errors import RecordingError
from hf_prune.model.pairs import DPO_LOSSES

# Of trl's trainers, those with a loss of a micro-batch that is no mean of losses of its rows, and why.
_TOGETHER = {
    "KTOTrainer": "each row is compared with the others of its micro-batch",
    "ORPOTrainer": "a mean over the tokens of a micro-batch is added to a mean over its pairs",
    "CPOTrainer": "a mean over the tokens of a micro-batch is added to a mean over its pairs",
}
_KNOWN = ("SFTTrainer", "DPOTrainer", "RewardTrainer")
# Of sentence-transformers' losses, those that are a mean of losses of rows.
_SENTENCE_LOSSES = (
    "ContrastiveLoss",
    "CosineSimilarityLoss",
    "DistillKLDivLoss",
    "MSELoss",
    "MarginMSELoss",
    "SoftmaxLoss",
    "TripletLoss",
)


def find_pairs(args: TrainingArguments, model: nn.Module, columns: Collection[str]) -> dict[str, Any] | None:
    """
    What the loss of a trainer of pairs is made of, as the manifest keeps it; `None` for other trainers.

    Args:
        args (`TrainingArguments`): The Trainer's, by whose class it is known.
        model (`nn.Module`): The model inside all wrappers.
        columns (`Collection[str]`): Those of the training rows.

    Raises:
        [`RecordingError`]: if rows have no losses of their own.
    """
    _check_sentence_losses(model)
    trainer = compat.trl_trainer(args)
    if trainer == "DPOTrainer" and not {"image", "images"}.isdisjoint(columns):
        raise RecordingError("Pairs with pictures cannot be scored; train on pairs of texts.")
    if trainer == "RewardTrainer":
        return {"trainer": trainer, "center_rewards_coefficient": getattr(args, "center_rewards_coefficient", None)}
    if trainer == "DPOTrainer":
        _check_dpo(args, model)
        return _dpo(args)
    if trainer is not None and trainer not in _KNOWN:
        reason = _TOGETHER.get(trainer, "rows are made or weighed while it trains")
        raise RecordingError(
            f"{trainer}'s loss is no mean of losses of single rows ({reason}), so nothing could be said of one row; "
            f"train with {', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}, or without TrajectoryCallback."
        )
    return None


def _dpo(args: Any) -> dict[str, Any]:
    return {
        "trainer": "DPOTrainer",
        "reference": "columns" if args.precompute_ref_log_probs else "adapter",
        "loss_type": list(args.loss_type),
        "loss_weights": [float(weight) for weight in args.loss_weights or [1.0] * len(args.loss_type)],
        "beta": float(args.beta),
        "label_smoothing": float(args.label_smoothing),
        "discopop_tau": float(args.discopop_tau),
    }


def _check_dpo(args: Any, model: nn.Module) -> None:
    wrong = next((kind for kind in args.loss_type if kind not in DPO_LOSSES), None)
    if wrong is not None:
        raise RecordingError(
            f"loss_type={wrong!r} is no mean over pairs, so nothing could be said of one row; train with one of "
            f"{', '.join(DPO_LOSSES)}."
        )
    for name, plain in (
        ("f_divergence_type", "reverse_kl"),
        ("ld_alpha", None),
        ("use_weighting", False),
        ("sync_ref_model", False),
    ):
        if getattr(args, name, plain) != plain:
            raise RecordingError(
                f"DPOTrainer with {name}={getattr(args, name)!r} cannot be scored; train with {name}={plain!r}."
            )
    if not args.precompute_ref_log_probs and not hasattr(model, "peft_config"):
        raise RecordingError(
            "DPOTrainer's reference model is not part of the record; pass precompute_ref_log_probs=True, which puts "
            "its log-probabilities into the rows (and trains faster), or train an adapter (peft_config)."
        )


def _check_sentence_losses(model: nn.Module) -> None:
    wrong = next((name for name in compat.sentence_losses(model) if name not in _SENTENCE_LOSSES), None)
    if wrong is not None:
        raise RecordingError(
            f"{wrong} compares each row with the others of its micro-batch, so nothing could be said of one row; "
            f"train with one of {', '.join(_SENTENCE_LOSSES)}, or without TrajectoryCallback."
        )
