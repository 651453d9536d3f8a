"""The family of choices that a probe decides between, and the selection that follows from what it measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from datasets import Dataset

from hf_prune._core.columns import LAST_LAYER_INFLUENCE, LESS, RDS, InfluenceColumns
from hf_prune._core.config import SelectionConfig
from hf_prune._core.scoring import Claim
from hf_prune.selection import pipeline
from hf_prune.selection.evidence import BALANCED, Evidence
from hf_prune.selection.method import method_of
from hf_prune.selection.problem import Problem
from hf_prune.selection.selection import Selection

PREFERENCES: dict[str, dict[str, float | str]] = {
    "without the hardest 20%": {"cut": 0.2},
    "hard 25%": {"hard": 0.25},
    "iclr2023": {"method": "iclr2023"},
    "tdds": {"method": "tdds"},
    "hard 50%": {"hard": 0.5},
    "hardest": {"method": "norm"},
    "el2n": {"method": "el2n"},
    "aum": {"method": "aum"},
}
"""What may be preferred to the balanced choice, the mildest first: a small budget leaves the last out."""
SCORED = {"el2n": "el2n", "aum": "aum", "tdds": "variability", "iclr2023": LAST_LAYER_INFLUENCE}
"""Those that are tried only where the dataset has the column that they read."""
_OWN = ("method", "difficulty", "hard", "cut", "cost", "epsilon")


class Comparison(Protocol):
    """What a probe can do: [`~hf_prune.verification.probe.Probe`] retrains."""

    def compare(self, dataset: Dataset, candidates: dict[str, np.ndarray]) -> Evidence:
        """Measures subsets, each given by the rows that it keeps, and says which to take."""
        ...


def family(config: SelectionConfig, columns: list[str]) -> dict[str, SelectionConfig]:
    """
    The candidates by name, the balanced choice first.

    Raises:
        `ValueError`: if the options ask for a preference already.
    """
    asked = sorted(set(config.changed()) & set(_OWN))
    if asked:
        raise ValueError(f"A probe finds out what to prefer, which {asked[0]} already sets: leave one of them out.")
    found = {BALANCED: config}
    for name, changes in PREFERENCES.items():
        if name not in SCORED or SCORED[name] in columns:
            found[name] = replace(config, **changes)  # type: ignore[arg-type]
    return found


def probed(problem: Problem, config: SelectionConfig, claim: Claim, probe: Comparison) -> Selection:
    """
    The candidate that a probe takes, with the evidence in its certificate.

    Args:
        problem (`Problem`): The dataset.
        config (`SelectionConfig`): Size, balance, seed and the like, which all candidates share.
        claim (`Claim`): How the influence columns were made, and what has to be said with that.
        probe (`Comparison`): What measures the candidates.
    """
    configs = family(config, problem.dataset.column_names)
    selections = {name: pipeline.run(problem, asked, method_of(asked), claim) for name, asked in configs.items()}
    scores = [*InfluenceColumns(config.column), LAST_LAYER_INFLUENCE, LESS, RDS]
    trained = problem.dataset.select_columns([n for n in problem.dataset.column_names if n not in scores])
    evidence = probe.compare(trained, {name: found.keep_indices for name, found in selections.items()})
    taken = selections[evidence.chosen]
    return replace(taken, certificate=replace(taken.certificate, evidence=evidence))
