"""Moderate coreset."""

from __future__ import annotations

import numpy as np

from hf_prune._core.config import SelectionConfig
from hf_prune.selection.choice import Choice, drop_largest
from hf_prune.selection.distances import groups, notes
from hf_prune.selection.method import method
from hf_prune.selection.problem import Problem


@method("moderate", reads=("features",), paper="https://openreview.net/forum?id=7D5EECbOaf9")
def moderate(problem: Problem, dropped: int, config: SelectionConfig) -> Choice:
    """
    Keeps the rows whose distance to the centre of their class is nearest to the median of these distances.

    Moderate coreset, Xia et al., ICLR 2023, [OpenReview 7D5EECbOaf9](https://openreview.net/forum?id=7D5EECbOaf9). The
    centre is the mean of the class, and the median is taken in each class.
    """
    far = np.empty(problem.n)
    for rows, vectors in groups(problem, config):
        distances = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
        far[rows] = np.abs(distances - np.median(distances))
    return Choice(drop_largest(problem, dropped, far), notes(config))
