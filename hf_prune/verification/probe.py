"""Paired retrainings of a few candidate subsets: the evidence that `prune` bases a preference on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm

from hf_prune._core.digest import content_digest
from hf_prune._core.io import write_bytes
from hf_prune.selection.evidence import BALANCED, Evidence, beyond_chance, gains
from hf_prune.verification.metrics import Metric
from hf_prune.verification.runs import Factory, RetrainingProtocol

logger = logging.getLogger(__name__)

FIRST_SEED = 100_000
"""Seeds of probes start here, apart from those of `verify` and of most recorded runs."""
RANDOM = "random"
"""Random rows, drawn again for each seed, that every candidate is compared with."""


@dataclass(frozen=True)
class Probe:
    """
    Finds out by retraining which rows to prefer, for [`prune`]`(..., probe=Probe(...))`.

    Ways of choosing (the balanced one, more or fewer of the hardest rows, and the baselines whose columns the dataset
    has) are compared with as many random rows trained with the same seed. The better half continues with another seed
    (successive halving), until one is left, which continues until `cost` is spent. It is taken if it beats random rows
    beyond chance; if it does not, the balanced choice is.

    Args:
        factory (`Callable[[Dataset, int], Trainer]`):
            As [`verify`] takes it: makes a Trainer with a *fresh* model from training rows and a seed.
        eval_dataset (`Dataset`):
            Rows to measure on: none of the training rows, and not those that `verify` will measure on.
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
            Where each retraining's result is kept, so that a stopped probe continues where it was. Use another
            directory for another factory or metric.

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
        plan = rounds(len(candidates), self.cost / share)
        trainings = sum(plan) + len(plan)
        protocol = RetrainingProtocol(
            self.factory, {"eval": self.eval_dataset}, self.metric, self.budget, len(dataset)
        )
        logger.warning(
            f"Probing {plan[0]} ways to keep {kept:,} of {len(dataset):,} rows by {trainings} retrainings, which cost "
            f"{trainings * share:.2g} times the training on all rows."
        )
        better = protocol.measure.name != "loss" if self.greater_is_better is None else self.greater_is_better
        values = self._train(protocol, dataset, candidates, plan, 1 if better else -1)
        base = values.pop(RANDOM)
        found, freedom = gains(values, base, 1 if better else -1)
        beats = beyond_chance(found[0], freedom, len(found))
        return Evidence(
            metric=protocol.measure.name,
            budget=self.budget,
            eval_rows=len(self.eval_dataset),
            eval_digest=content_digest(self.eval_dataset),
            trainings=trainings,
            cost=trainings * share,
            candidates=found,
            chosen=found[0].name if beats else BALANCED,
            beats_random=beats,
        )

    def _train(
        self,
        protocol: RetrainingProtocol,
        dataset: Dataset,
        candidates: Mapping[str, np.ndarray],
        plan: list[int],
        sign: int,
    ) -> dict[str, list[float]]:
        """The metric of each candidate and of random rows, seed by seed; the better ones have more seeds."""
        alive = list(candidates)[: plan[0]]
        values: dict[str, list[float]] = {name: [] for name in [*alive, RANDOM]}
        with tqdm(total=sum(plan) + len(plan), desc="Probing", unit="training") as bar:
            for place, size in enumerate(plan):
                # candidates that are alive have the same seeds, so that their sums compare
                alive = sorted(alive, key=lambda name: -sign * sum(values[name]))[:size]
                for name in [*alive, RANDOM]:
                    bar.set_postfix_str(name)
                    seed = FIRST_SEED + place
                    kept = random_ids(len(dataset), candidates, seed) if name == RANDOM else candidates[name]
                    values[name].append(self._one(protocol, dataset, kept, seed))
                    bar.update()
        return values

    def _one(self, protocol: RetrainingProtocol, dataset: Dataset, kept: np.ndarray, seed: int) -> float:
        """The metric after one training, from `directory` where it is known already."""
        known = json.dumps([kept.tolist(), seed, self.budget, self.steps, protocol.measure.name, self._eval_digest])
        file = None if self.directory is None else Path(self.directory) / f"{sha256(known.encode()).hexdigest()}.json"
        if file is not None and file.is_file():
            return float(json.loads(file.read_text())["metric"])
        run = protocol.retrain(dataset.select(kept), seed, steps=self.steps)["eval"]
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, json.dumps({"metric": run.metric, "seed": seed, "steps": run.steps}).encode())
        return run.metric

    @cached_property
    def _eval_digest(self) -> str:
        return content_digest(self.eval_dataset)


def rounds(candidates: int, trainings: float) -> list[int]:
    """
    How many candidates are trained with each seed, besides random rows: half as many with each next, one in the end.

    Where that many trainings do not get from all candidates to one, the last named are left out.

    Raises:
        `ValueError`: if they do not get from two candidates to one.
    """
    for first in range(candidates, 1, -1):
        plan, left, size = [], int(trainings + 1e-9), first
        while left >= size + 1:
            plan.append(size)
            left -= size + 1
            size = -(-size // 2)
        if plan and plan[-1] == 1:
            return plan
    raise ValueError(
        f"The probe's cost pays for {int(trainings)} retrainings, and a comparison takes 5: raise cost, or keep fewer "
        "rows."
    )


def random_ids(n: int, candidates: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    """As many random rows as each candidate keeps, sorted, others for each seed."""
    kept = len(next(iter(candidates.values())))
    return np.sort(np.random.default_rng([seed, n]).permutation(n)[:kept])
