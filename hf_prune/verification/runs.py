"""One retraining with the user's own Trainer factory, and what it is worth on held-out rows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import Trainer, set_seed

from hf_prune.verification.metrics import PREFIX, Measure, Metric, measure_of
from hf_prune.verification.result import Retraining

logger = logging.getLogger(__name__)

Factory = Callable[[Dataset, int], Trainer]


@dataclass(frozen=True)
class RetrainingProtocol:
    """
    How every retraining is done.

    Args:
        factory (`Callable`): `(train_dataset, seed) -> Trainer`, with a fresh model.
        eval_datasets (`Mapping[str, Dataset]`): Held-out rows by name.
        metric (`Metric`): See [`verify`].
        budget (`str`): `"epochs"` or `"steps"`.
        full_rows (`int`): Rows of the whole training set.
    """

    factory: Factory
    eval_datasets: Mapping[str, Dataset]
    metric: Metric
    budget: str
    full_rows: int
    measure: Measure = field(init=False)
    """What a model is measured by; a wrong metric is named before any training."""

    def __post_init__(self) -> None:
        if self.budget not in ("epochs", "steps"):
            raise ValueError(f"budget={self.budget!r} is not known: pass 'epochs' or 'steps'.")
        object.__setattr__(self, "measure", measure_of(self.metric))

    def retrain(self, dataset: Dataset, seed: int, *, steps: int | None = None) -> dict[str, Retraining]:
        """
        Trains once and measures on each of the held-out sets.

        Args:
            dataset (`Dataset`): The training rows.
            seed (`int`): Seed of model and order.
            steps (`int`, *optional*): Optimizer steps to make, whatever the factory's epochs.

        Returns:
            `dict[str, Retraining]`: One run for each held-out set.
        """
        set_seed(seed)  # before the factory: the model's initial weights belong to the seed
        trainer = self.factory(dataset, seed)
        self._check(trainer, dataset, seed)
        if steps is not None:
            if trainer.lr_scheduler is not None:
                logger.warning(
                    "The factory made a learning-rate schedule of its own; with budget='steps' it has to span the "
                    "%d steps of the full run, or the arms are not trained alike.",
                    steps,
                )
            trainer.args.max_steps = steps
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        made = trainer.state.global_step
        return {name: self._measure(trainer, rows, seed, made, seconds) for name, rows in self.eval_datasets.items()}

    def _check(self, trainer: Trainer, dataset: Dataset, seed: int) -> None:
        if trainer.args.seed != seed:
            raise ValueError(
                f"The factory's Trainer has seed {trainer.args.seed} instead of {seed}: pass the factory's second "
                "argument on as TrainingArguments(seed=seed)."
            )
        if self.budget == "epochs" and trainer.args.max_steps > 0:
            raise ValueError(
                f"The factory sets max_steps={trainer.args.max_steps}, which gives smaller sets more epochs: set "
                "num_train_epochs instead, or pass budget='steps'."
            )
        if self.measure.function is None and self.measure.name != "loss" and trainer.compute_metrics is None:
            raise ValueError(
                f"metric={self.measure.name!r} is not known, and the factory's Trainer has no compute_metrics: pass "
                "'accuracy', what evaluate.load returned, or a function (predictions, labels) -> float."
            )
        used = trainer.train_dataset
        if len(dataset) < self.full_rows and isinstance(used, Dataset) and len(used) == self.full_rows:
            raise ValueError(
                f"The factory was given {len(dataset)} rows but its Trainer trains on {len(used)}: pass the factory's "
                "first argument on as train_dataset."
            )

    def _measure(self, trainer: Trainer, rows: Dataset, seed: int, steps: int, seconds: float) -> Retraining:
        # a language model's logits of all rows would fill the memory
        trainer.args.prediction_loss_only = self.measure.function is None and self.measure.name == "loss"
        output = trainer.predict(rows, metric_key_prefix=PREFIX)
        value = self.measure.of(output)
        if not math.isfinite(value):
            raise ValueError(f"The metric of seed {seed} is {value}: check that training converges, or the metric.")
        loss = (output.metrics or {}).get(f"{PREFIX}_loss")
        return Retraining(
            seed=seed,
            metric=value,
            loss=float(loss) if loss is not None and math.isfinite(loss) else None,
            steps=steps,
            seconds=seconds,
        )
