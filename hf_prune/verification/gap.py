"""`verify`: the gap observed by retraining, next to the predicted one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm

from hf_prune._core.digest import content_digest
from hf_prune.selection import PrunedDataset
from hf_prune.verification.kept import KeptRetrainings
from hf_prune.verification.metrics import Metric
from hf_prune.verification.result import Arm, Retraining, Verification
from hf_prune.verification.runs import Factory, RetrainingProtocol

# A stream of its own for each seed: random subsets must not repeat those that `select(method="random")` draws.
_STREAM = 7919


def verify(
    factory: Factory,
    full: Dataset,
    pruned: Dataset,
    *,
    eval_dataset: Dataset,
    seeds: int | Sequence[int] = 3,
    metric: Metric = "accuracy",
    greater_is_better: bool | None = None,
    budget: str = "epochs",
    random: bool = True,
    directory: str | Path | None = None,
) -> Verification:
    """
    Retrains on all rows, on the pruned ones and on random ones, and measures each model on held-out rows.

    Every arm sees the same seeds; the random arm draws as many rows as the pruned one has, again for each seed.

    Args:
        factory (`Callable[[Dataset, int], Trainer]`):
            Makes a Trainer with a *fresh* model from training rows and a seed, which it passes on as
            `TrainingArguments(seed=seed)`. The global seed is set before each call.
        full (`Dataset`):
            All training rows, as the first training had them.
        pruned (`Dataset`):
            What [`prune`] returned. Columns that `full` does not have (influence) are left out.
        eval_dataset (`Dataset`):
            Rows to measure on, which were used for no choice. The prediction is about the held-out rows that
            `add_influence` was given: their loss and that of these rows differ by what the two samples differ.
        seeds (`int` or `Sequence[int]`, *optional*, defaults to 3):
            How many seeds (0, 1, ...), or which.
        metric (`str`, `Callable` or `evaluate.EvaluationModule`, *optional*, defaults to `"accuracy"`):
            `"accuracy"`; what `evaluate.load` returned, or the path of such a module; the name of one of the Trainer's
            own metrics (`"loss"`, or what `compute_metrics` returns); or a function of predictions and labels as
            `Trainer.predict` gives them that returns a float.
        greater_is_better (`bool`, *optional*):
            Whether more of the metric is better; by default so, but for `"loss"`.
        budget (`str`, *optional*, defaults to `"epochs"`):
            `"epochs"`: every arm makes the factory's epochs, so fewer rows take fewer steps; `"steps"`: every arm
            makes as many optimizer steps as the full one, which is what the certificate's prediction is about.
        random (`bool`, *optional*, defaults to `True`):
            Whether to train the random arm.
        directory (`str` or `Path`, *optional*):
            Where each retraining's result is kept, so that a stopped verification goes on where it was. A factory
            or a metric whose file was changed begins again; use another directory where what they use was changed.

    Returns:
        [`Verification`]: The runs, their means and intervals, the gaps, and the certificate's prediction.

    Raises:
        `ValueError`: If the factory ignores its arguments, an argument is out of range, `pruned` was made from
            another number of rows than `full` has, or a probe chose it on these very `eval_dataset` rows.

    Example:

    ```py
    >>> result = verify(make_trainer, train, pruned, eval_dataset=test)
    >>> print(result.explain())
    ```
    """
    chosen = _seeds(seeds)
    _check_unseen(pruned, eval_dataset)
    protocol = RetrainingProtocol(factory, {"eval": eval_dataset}, metric, budget, len(full))
    better = protocol.measure.name != "loss" if greater_is_better is None else greater_is_better
    less = same_columns(pruned, full)
    kept = KeptRetrainings(protocol, directory)
    with tqdm(total=len(chosen) * (3 if random else 2), desc="Retraining", unit="run") as bar:

        def run(name: str, rows: Callable[[int], Dataset], full_arm: Arm | None = None) -> Arm:
            return train_arm(kept, name, rows, chosen, full_arm=full_arm, bar=bar)["eval"]

        full_arm = run("all rows", lambda seed: full)
        pruned_arm = run("pruned", lambda seed: less, full_arm)
        random_arm = run("random", lambda seed: random_rows(full, len(less), seed), full_arm) if random else None
    return Verification(
        metric=protocol.measure.name,
        greater_is_better=better,
        budget=budget,
        full=full_arm,
        pruned=pruned_arm,
        random=random_arm,
        predicted_loss_change=predicted_loss_change(pruned),
        predicted_random_loss_change=predicted_random_loss_change(pruned),
    )


def train_arm(
    retrainings: KeptRetrainings,
    name: str,
    rows: Callable[[int], Dataset],
    seeds: Sequence[int],
    *,
    full_arm: Arm | None = None,
    bar: Any,
) -> Mapping[str, Arm]:
    """
    Retrains one arm.

    Args:
        retrainings (`KeptRetrainings`): How, and what is known already.
        name (`str`): Shown on the bar.
        rows (`Callable[[int], Dataset]`): The training rows for a seed.
        seeds (`Sequence[int]`): The seeds.
        full_arm (`Arm`, *optional*): Whose number of steps is repeated under a budget of steps.
        bar (`tqdm`): Goes on by one for each training.

    Returns:
        `Mapping[str, Arm]`: One arm for each of the protocol's held-out sets.
    """
    protocol = retrainings.protocol
    runs: dict[str, list[Retraining]] = {key: [] for key in protocol.eval_datasets}
    size = 0
    for place, seed in enumerate(seeds):
        bar.set_postfix_str(f"{name}, seed {seed}")
        dataset = rows(seed)
        size = len(dataset)
        again = full_arm.runs[place].steps if full_arm is not None and protocol.budget == "steps" else None
        for key, run in retrainings.retrain(dataset, seed, steps=again).items():
            runs[key].append(run)
        bar.update()
    return {key: Arm(rows=size, runs=tuple(entries)) for key, entries in runs.items()}


def random_rows(full: Dataset, count: int, seed: int) -> Dataset:
    """`count` random rows of `full` in their old order, others for each seed."""
    chosen = np.random.default_rng([seed, _STREAM]).permutation(len(full))[:count]
    return full.select(sorted(int(i) for i in chosen))


def same_columns(pruned: Dataset, full: Dataset) -> Dataset:
    """The pruned rows with the columns that the full set has: a collator may not know what to do with others."""
    if isinstance(pruned, PrunedDataset) and pruned.selection.n_rows != len(full):
        raise ValueError(
            f"The pruned rows were chosen from {pruned.selection.n_rows}, and full has {len(full)}: pass the "
            "dataset that was pruned, or the prediction is of something else."
        )
    missing = [name for name in full.column_names if name not in pruned.column_names]
    if missing:
        raise ValueError(
            f"The pruned dataset lacks the column {missing[0]!r}: pass the datasets as they were trained on."
        )
    if len(pruned) > len(full):
        raise ValueError(f"The pruned dataset has {len(pruned)} rows, the full one {len(full)}: check their order.")
    return pruned.select_columns(full.column_names)


def _check_unseen(pruned: Dataset, eval_dataset: Dataset) -> None:
    """What a choice was made on cannot measure it."""
    evidence = pruned.selection.certificate.evidence if isinstance(pruned, PrunedDataset) else None
    if evidence is not None and evidence.eval_digest == content_digest(eval_dataset):
        raise ValueError("The probe chose the pruned rows on this eval_dataset, which favours them: pass other rows.")


def predicted_loss_change(pruned: Dataset) -> float | None:
    """The certificate's predicted change of the held-out loss, if the dataset carries one."""
    return pruned.selection.certificate.predicted_eval_loss_change if isinstance(pruned, PrunedDataset) else None


def predicted_random_loss_change(pruned: Dataset) -> float | None:
    """The mean of the same prediction over random subsets of the same size."""
    random = pruned.selection.certificate.random_eval_loss_change if isinstance(pruned, PrunedDataset) else None
    return None if random is None else random.mean


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"seeds={seeds!r} has to name at least one seed, each once: pass for example seeds=3.")
    return chosen
