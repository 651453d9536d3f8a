"""The scores again, row by row in plain Python, out of what the model noted."""

from __future__ import annotations

import itertools
import math
from statistics import fmean, pstdev

import numpy as np


def scores_of(visits: list[list[float]], rows: int, early: int) -> dict[str, np.ndarray]:
    """Of (id, loss, confidence, margin, error, correct) of every visit in order."""
    histories: list[list[list[float]]] = [[] for _ in range(rows)]
    for i, *values in visits:
        if not math.isnan(values[0]):
            histories[int(i)].append(values)
    most = max(len(history) for history in histories)
    columns = [_scores(history, most, early) for history in histories]
    return {name: np.array([column[name] for column in columns]) for name in columns[0]}


def _scores(history: list[list[float]], most: int, early: int) -> dict[str, float]:
    names = ("el2n", "forgetting", "aum", "loss", "confidence", "variability")
    if not history:
        return dict.fromkeys(names, math.nan)
    loss, confidence, margin, error, correct = (list(values) for values in zip(*history, strict=True))
    falls = sum(max(0.0, before - after) for before, after in itertools.pairwise(correct))
    return {
        "el2n": fmean(error[:early]),
        "forgetting": most + 1 if not any(correct) else falls,
        "aum": fmean(margin),
        "loss": loss[-1],
        "confidence": fmean(confidence),
        "variability": pstdev(confidence),
    }
