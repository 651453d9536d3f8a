"""What a retrained model is measured by: a function, a module of `evaluate`, or one of the Trainer's own metrics."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import evaluate
    from transformers.trainer_utils import PredictionOutput

Metric: TypeAlias = "str | os.PathLike[str] | Callable[[Any, Any], float] | evaluate.EvaluationModule"

PREFIX = "verify"
"""The prefix of the Trainer's metrics of a retrained model."""
IGNORED = -100
"""The label of positions that count in no loss and no metric."""


@dataclass(frozen=True)
class Measure:
    """
    A metric of a retrained model.

    Args:
        name (`str`): What it is called in reports.
        function (`Callable`, *optional*): Of predictions and labels as `Trainer.predict` gives them; by default the
            Trainer's own metric of that name is read.
    """

    name: str
    function: Callable[[Any, Any], float] | None = None

    def of(self, output: PredictionOutput) -> float:
        """
        The metric's value.

        Raises:
            `ValueError`: If the rows have no labels, or the Trainer computed no such metric.
        """
        if self.function is None:
            return self._own(output.metrics or {})
        if output.label_ids is None:
            raise ValueError("The eval dataset has no labels: pass held-out rows with the column that training used.")
        predictions = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        return float(self.function(predictions, output.label_ids))

    def _own(self, metrics: dict[str, Any]) -> float:
        name = f"{PREFIX}_{self.name}"
        if name not in metrics:
            known = sorted(key.removeprefix(f"{PREFIX}_") for key in metrics)
            raise ValueError(
                f"The Trainer's metrics have no {self.name!r}, only {known}: name one of them, or return it from "
                "compute_metrics."
            )
        return float(metrics[name])


def measure_of(metric: Metric) -> Measure:
    """
    Makes a measure of what the user passed as `metric`.

    Args:
        metric (`str`, `os.PathLike`, `Callable` or `evaluate.EvaluationModule`): See [`verify`].

    Raises:
        `TypeError`: If it is nothing of these.
    """
    if isinstance(metric, str) and metric == "accuracy":
        return Measure("accuracy", accuracy)
    if isinstance(metric, str | os.PathLike):
        path = os.fspath(metric)
        if os.path.isdir(path) or path.endswith(".py"):
            return _of_module(_load(path))
        return Measure(path.removeprefix("eval_"))
    if callable(metric):
        return Measure(getattr(metric, "__name__", "metric"), metric)
    library = sys.modules.get("evaluate")  # whoever holds one of its modules has imported it
    if library is not None and isinstance(metric, library.EvaluationModule):
        return _of_module(metric)
    raise TypeError(
        f"metric is a {type(metric).__name__}: pass a name, a function (predictions, labels) -> float, or what "
        "evaluate.load returned."
    )


def _load(path: str) -> evaluate.EvaluationModule:
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(f"The metric {path} needs evaluate: pip install 'hf-prune[evaluate]'.") from error
    return evaluate.load(path)


def accuracy(predictions: Any, labels: Any) -> float:
    """The share of labels that have the highest logit; ignored positions do not count."""
    found, wanted = _counted(np.asarray(predictions).argmax(-1), np.asarray(labels))
    return float((found == wanted).mean())


def _of_module(module: evaluate.EvaluationModule) -> Measure:
    def compute(predictions: Any, labels: Any) -> float:
        values = _for_module(module, np.asarray(predictions), np.asarray(labels))
        result = module.compute(predictions=values[0], references=values[1])
        return _figure(result, module.name)

    return Measure(module.name, compute)


def _for_module(module: evaluate.EvaluationModule, predictions: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """Predictions and labels in the form that the module's features ask for: classes for whole numbers."""
    features = module.features[0] if isinstance(module.features, list) else module.features
    if "predictions" not in features or "references" not in features:
        raise ValueError(
            f"The metric {module.name!r} takes {sorted(features)} instead of predictions and references: pass a "
            "function (predictions, labels) -> float that calls it."
        )
    whole = getattr(features["predictions"], "dtype", "").startswith(("int", "uint"))
    if predictions.ndim == labels.ndim + 1:
        if whole:
            predictions = predictions.argmax(-1)
        elif predictions.shape[-1] == 1:
            predictions = predictions[..., 0]
    if predictions.shape != labels.shape:
        raise ValueError(
            f"The metric {module.name!r} cannot take outputs of shape {predictions.shape} for labels of shape "
            f"{labels.shape}: pass a function (predictions, labels) -> float that calls it."
        )
    return _counted(predictions, labels)


def _counted(found: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions that have a label, as flat arrays."""
    counts = wanted != IGNORED
    return found[counts], wanted[counts]


def _figure(result: Any, name: str) -> float:
    """The one figure of a module's result: the one that has its name, or the only one."""
    if name in result:
        return float(result[name])
    if len(result) == 1:
        return float(next(iter(result.values())))
    raise ValueError(
        f"The metric {name!r} returned {sorted(result)}, and none has its name: pass a function (predictions, labels) "
        "-> float that picks one."
    )
