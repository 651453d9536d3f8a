"""Paired retrainings of a few candidate subsets: the evidence that `prune` bases a preference on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm

from hf_prune._core.digest import content_digest
from hf_prune.selection.evidence import BALANCED, RANDOM, Evidence, beats_random, preferred, weigh
from hf_prune.verification.kept import KeptRetrainings
from hf_prune.verification.metrics import Metric
from hf_prune.verification.runs import Factory, RetrainingProtocol

logger = logging.getLogger(__name__)

FIRST_SEED = 100_000
"""Seeds of probes start here, apart from those of `verify` and of most recorded runs."""
BLOCKS = 20
"""Parts of the held-out rows that are measured apart, to know how much the metric owes to these rows."""
DUEL = (BALANCED, RANDOM)
"""What the best candidate of the first seed is trained beside with each further seed."""


@dataclass(frozen=True)
class Probe:
    """
    Finds out by retraining which rows to prefer, for [`prune`]`(..., probe=Probe(...))`.

    Ways of choosing (the balanced one, more or fewer of the hardest rows, and the baselines whose columns the dataset
    has) and as many random rows are trained with one seed. The best of them continues with further seeds beside the
    balanced choice and random rows, until `cost` is spent. It is taken if it beats random rows beyond chance and the
    balanced choice by more than a standard error; if it does not, the balanced choice is.

    Args:
        factory (`Callable[[Dataset, int], Trainer]`):
            As [`verify`] takes it: makes a Trainer with a *fresh* model from training rows and a seed.
        eval_dataset (`Dataset`):
            Rows to measure on: none of the training rows, and not those that `verify` will measure on. They are
            measured in up to 20 parts, and the metric is the parts' mean, so each part needs as many rows as the
            metric does (one row for accuracy and loss).
        metric (`str`, `Callable` or `evaluate.EvaluationModule`, *optional*, defaults to `"accuracy"`):
            As [`verify`] takes it.
        greater_is_better (`bool`, *optional*):
            Whether more of the metric is better; by default so, but for `"loss"`.
        budget (`str`, *optional*, defaults to `"epochs"`):
            What the training on the pruned rows will have as many of as that on all rows, `"epochs"` or `"steps"`:
            the best choice differs. With `"steps"` name them by `steps`.
        steps (`int`, *optional*):
            Optimizer steps of the recorded run, for `budget="steps"`.
        cost (`float`, *optional*, defaults to 8.0):
            What the retrainings may cost together, in trainings on all rows. It is logged before they start.
        directory (`str` or `Path`, *optional*):
            Where each retraining's result is kept, so that a stopped probe continues where it was. A factory or a
            metric whose file was changed begins again; use another directory where what they use was changed.

    Example:

    ```py
    >>> pruned = prune(scored, keep=0.5, probe=Probe(make_trainer, eval_dataset=dev))
    >>> print(pruned.selection.certificate.evidence.explain())
    ```
    """

    factory: Factory
    eval_dataset: Dataset
    metric: Metric = "accuracy"
    greater_is_better: bool | None = None
    budget: str = "epochs"
    steps: int | None = None
    cost: float = 8.0
    directory: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.budget == "steps") != (self.steps is not None):
            raise ValueError(
                "steps= names the optimizer steps of the recorded run, for budget='steps' alone: pass both or neither."
            )
        if not self.cost > 0:
            raise ValueError(f"cost={self.cost!r} is not a positive number of trainings on all rows.")

    def compare(self, dataset: Dataset, candidates: Mapping[str, np.ndarray]) -> Evidence:
        """
        Trains the candidates and says which to take.

        Args:
            dataset (`Dataset`): All training rows.
            candidates (`Mapping[str, np.ndarray]`): The rows that each keeps, equally many; one is `"balanced"`.

        Raises:
            `ValueError`: if `cost` does not pay for a comparison.
        """
        kept = len(next(iter(candidates.values())))
        share = 1.0 if self.budget == "steps" else kept / len(dataset)
        screened, duels = plan(len(candidates), self.cost / share)
        trainings = screened + len(DUEL) + duels * (1 + len(DUEL))
        protocol = RetrainingProtocol(self.factory, blocks(self.eval_dataset), self.metric, self.budget, len(dataset))
        logger.warning(
            f"Probing {screened + 1} ways to keep {kept:,} of {len(dataset):,} rows by {trainings} retrainings, which "
            f"cost {trainings * share:.2g} times the training on all rows."
        )
        better = protocol.measure.name != "loss" if self.greater_is_better is None else self.greater_is_better
        sign = 1 if better else -1
        found = weigh(self._train(protocol, dataset, candidates, screened, duels, sign), sign)
        return Evidence(
            metric=protocol.measure.name,
            budget=self.budget,
            eval_rows=len(self.eval_dataset),
            eval_digest=content_digest(self.eval_dataset),
            trainings=trainings,
            cost=trainings * share,
            candidates=found,
            chosen=found[0].name if preferred(found[0]) else BALANCED,
            beats_random=beats_random(found[0]),
        )

    def _train(
        self,
        protocol: RetrainingProtocol,
        dataset: Dataset,
        candidates: Mapping[str, np.ndarray],
        screened: int,
        duels: int,
        sign: int,
    ) -> dict[str, np.ndarray]:
        """The metric, `(seeds, blocks)`, of each candidate and of random rows."""
        others = [name for name in candidates if name != BALANCED][:screened]
        values: dict[str, list[list[float]]] = {name: [] for name in [*DUEL, *others]}
        kept_runs = KeptRetrainings(protocol, self.directory)
        with tqdm(total=len(values) + duels * (1 + len(DUEL)), desc="Probing", unit="training") as bar:

            def train(names: list[str], seed: int) -> None:
                for name in names:
                    bar.set_postfix_str(name)
                    kept = random_ids(len(dataset), candidates, seed) if name == RANDOM else candidates[name]
                    runs = kept_runs.retrain(dataset.select(kept), seed, steps=self.steps)
                    values[name].append([run.metric for run in runs.values()])
                    bar.update()

            train(list(values), FIRST_SEED)
            best = max(others, key=lambda name: sign * sum(values[name][0]))
            for seed in range(FIRST_SEED + 1, FIRST_SEED + 1 + duels):
                train([best, *DUEL], seed)
        return {name: np.array(found) for name, found in values.items()}


def plan(candidates: int, trainings: float) -> tuple[int, int]:
    """
    How many candidates besides the balanced one are trained with the first seed, and how many seeds follow.

    Where that many trainings do not pay for all candidates and one further seed, the last named are left out.

    Raises:
        `ValueError`: if they do not pay for one candidate.
    """
    paid, duel = int(trainings + 1e-9), 1 + len(DUEL)
    screened = min(candidates - 1, paid - len(DUEL) - duel)
    if screened < 1:
        raise ValueError(
            f"The probe's cost pays for {paid} retrainings, and a comparison takes {len(DUEL) + duel + 1}: raise "
            "cost, or keep fewer rows."
        )
    return screened, (paid - len(DUEL) - screened) // duel


def blocks(dataset: Dataset) -> dict[str, Dataset]:
    """The rows in up to `BLOCKS` parts, each of rows at equal distances, so that sorted rows are shared out."""
    count = min(BLOCKS, len(dataset))
    return {str(first): dataset.select(range(first, len(dataset), count)) for first in range(count)}


def random_ids(n: int, candidates: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    """As many random rows as each candidate keeps, sorted, others for each seed."""
    kept = len(next(iter(candidates.values())))
    return np.sort(np.random.default_rng([seed, n]).permutation(n)[:kept])
