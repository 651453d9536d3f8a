"""The method that the underlying paper extends: the discrete program on the last layer's influence."""

from __future__ import annotations

import numpy as np

from hf_prune._core.columns import LAST_LAYER_INFLUENCE
from hf_prune._core.config import SelectionConfig
from hf_prune.selection.annealing import anneal
from hf_prune.selection.choice import Choice
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("iclr2023", paper="https://hf.co/papers/2205.09329")
def iclr2023(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Drops the rows whose summed influence on the last layer is shortest; classes are left to chance.

    Dataset Pruning: Reducing Training Data by Examining Generalization Influence, Yang et al.,
    [arXiv 2205.09329](https://hf.co/papers/2205.09329), with `cardinality` given.
    """
    if LAST_LAYER_INFLUENCE not in problem.dataset.column_names:
        raise ValueError(
            f"method='iclr2023' needs the column {LAST_LAYER_INFLUENCE!r}: make it with `add_scores(dataset, "
            "trajectory, model=model, last_layer=True)`."
        )
    vectors = problem.table(LAST_LAYER_INFLUENCE).take(np.arange(problem.n))
    return Choice(anneal(vectors, dropped, config.seed)[0], resolved={"balance": False})
