"""A Trainer in place of a dataset: what was trained on, with what, need not be said twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import DataCollatorWithPadding, Trainer, default_data_collator

from hf_prune.errors import UnsupportedError


@dataclass(frozen=True)
class Given:
    """
    What a function was given to look at.

    Args:
        dataset (`Any`): The rows.
        train_dataset (`Any`): What was trained on, where these are other rows.
        model (`nn.Module`, *optional*): The trained model.
        eval_dataset (`Any`): Held-out rows.
        data_collator (`Callable`, *optional*): As given to the Trainer; `None` for its own.
    """

    dataset: Any
    train_dataset: Any
    model: nn.Module | None
    eval_dataset: Any
    data_collator: Callable[..., Any] | None

    @classmethod
    def of(
        cls,
        dataset: Any,
        *,
        train_dataset: Any = None,
        model: nn.Module | None = None,
        eval_dataset: Any = None,
        data_collator: Callable[..., Any] | None = None,
    ) -> Given:
        """
        Takes what was not given from the Trainer that stands for what was trained on, if one does.

        Its `eval_dataset` counts where that is one `Dataset`.

        Raises:
            `TypeError`: for a Trainer without training rows.
            `UnsupportedError`: for one whose pairs were compared with a model that the record does not hold.
        """
        trainer = dataset if train_dataset is None else train_dataset
        if not isinstance(trainer, Trainer):
            return cls(dataset, train_dataset, model, eval_dataset, data_collator)
        _check_reference(trainer)
        trained = trainer.train_dataset
        if trained is None:
            raise TypeError("The trainer has no train_dataset: pass the rows that were trained on in its place.")
        if eval_dataset is None and isinstance(trainer.eval_dataset, Dataset):
            eval_dataset = trainer.eval_dataset
        return cls(
            trained if train_dataset is None else dataset,
            train_dataset if train_dataset is None else trained,
            trainer.model if model is None else model,
            eval_dataset,
            _own_collator(trainer) if data_collator is None else data_collator,
        )

    @property
    def trained_model(self) -> nn.Module:
        """
        The trained model.

        Raises:
            `TypeError`: where there is none.
        """
        if self.model is None:
            raise TypeError("The trained model is missing: pass model=trainer.model, or the trainer as the dataset.")
        return self.model


def _check_reference(trainer: Trainer) -> None:
    """With an adapter a pair's reference is the model without it, unless `DPOTrainer` was given another one."""
    other = getattr(trainer, "ref_model", None) is not None
    if other and not getattr(trainer.args, "precompute_ref_log_probs", True):
        raise UnsupportedError(
            "DPOTrainer's ref_model is not part of the record; train with precompute_ref_log_probs=True, which puts "
            "its log-probabilities into the rows, or without ref_model, so that the reference is the model without "
            "its adapter."
        )


def _own_collator(trainer: Trainer) -> Callable[..., Any] | None:
    """The Trainer's collator, unless it is the one that the Trainer made by itself, which the record describes."""
    found: Callable[..., Any] = trainer.data_collator
    if found is default_data_collator:
        return None
    if not isinstance(found, DataCollatorWithPadding) or found.tokenizer is not trainer.processing_class:
        return found
    return None if found == DataCollatorWithPadding(found.tokenizer) else found
