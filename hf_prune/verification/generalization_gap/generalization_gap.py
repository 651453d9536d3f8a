"""The generalization gap of a smaller training set, as a module of the `evaluate` library."""

from typing import Any

import datasets
import evaluate

from hf_prune.verification.result import MeanInterval

_DESCRIPTION = """
The generalization gap of a smaller training set: what a held-out metric loses when a model is trained on the smaller
set instead of the whole one. It is the mean over seeds of the metric after training on all rows minus the metric after
training on the smaller set, paired by seed, with Student's t interval of that mean.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of float): The held-out metric after training on the smaller set, one value a seed.
    references (list of float): The held-out metric after training on all rows, with the same seeds in the same order.
    level (float): Level of the interval, in (0, 1). Defaults to 0.95.
Returns:
    generalization_gap (float): Mean of references minus predictions; positive: the smaller set has the lower metric.
    standard_deviation (float or None): Of the paired differences over seeds; None for one seed.
    interval (tuple of two floats or None): Student's t interval of the mean; None for one seed.
    seeds (int): Number of pairs.
Examples:
    >>> gap = evaluate.load(GENERALIZATION_GAP)
    >>> result = gap.compute(references=[0.92, 0.90, 0.91], predictions=[0.90, 0.89, 0.88])
    >>> round(result["generalization_gap"], 4)
    0.02
"""

_CITATION = ""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class GeneralizationGap(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float], level: float = 0.95) -> dict[str, Any]:
        if not 0 < level < 1:
            raise ValueError(f"level={level} has to lie between 0 and 1: pass for example level=0.95.")
        gap = MeanInterval.of_gap(references, predictions, level=level)
        return {
            "generalization_gap": gap.mean,
            "standard_deviation": gap.sd,
            "interval": gap.interval,
            "seeds": len(references),
        }
