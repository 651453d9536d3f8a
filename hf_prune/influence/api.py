"""`add_influence`: the influence columns of a dataset, as a `Dataset.map`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from torch import nn
from transformers import Trainer

from hf_prune._core import compat
from hf_prune._core.columns import InfluenceColumns
from hf_prune._core.config import ScoringConfig
from hf_prune._core.digest import content_digest
from hf_prune._core.doubts import doubts
from hf_prune._core.io import writing
from hf_prune._core.processes import Processes
from hf_prune._core.records import RecordedRun, ScoringRecord
from hf_prune._core.row_checks import with_checks
from hf_prune._core.scoring import with_scoring
from hf_prune._core.trackers import log_scoring
from hf_prune.influence.cache import SharedCache
from hf_prune.influence.checks import check_arguments, check_chance, check_dataset, check_model, check_window
from hf_prune.influence.engine import choose_engine
from hf_prune.influence.features import WithFeatures, find_features
from hf_prune.influence.kept_scores import check_scores, reading
from hf_prune.influence.pool import PART, PoolScorer, score_stream
from hf_prune.influence.predictor import check_same, check_shared, works_of
from hf_prune.influence.scorer import Scorer, logit_curvature
from hf_prune.model.losses import takes_model
from hf_prune.model.micro_batches import rows_of_a_pass
from hf_prune.model.replay import Replay
from hf_prune.model.token_head import vocabulary_of
from hf_prune.model.trainer import Given
from hf_prune.trajectory.trajectory import Trajectory

logger = logging.getLogger(__name__)

# Columns made by another version of the computation must not come from the cache.
VERSION = "influence/v10"


def add_influence(
    dataset: Dataset | IterableDataset | Trainer,
    trajectory: str | Path | Trajectory,
    *,
    model: nn.Module | None = None,
    eval_dataset: Dataset | None = None,
    directions: int = 64,
    space: str = "outputs",
    mode: str = "expected",
    curvature: str = "auto",
    batch_size: int | None = None,
    num_proc: int | None = None,
    data_collator: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    seed: int = 0,
    column: str = "influence",
    engine: str = "auto",
    train_dataset: Dataset | Trainer | None = None,
    max_memory: int | None = None,
    until: int | None = None,
    draws: int = 1,
) -> Dataset:
    """
    Adds to every training row how the trained model would change without it.

    - `influence` (`List(float32, k)`): the shift of k queries of the trained model if the row is removed. The last
      quarter of them are audit directions, which selection never optimises.
    - `influence_norm` (`float32`): its length. With `space="outputs"` it estimates the root mean square shift of a
      held-out row's logit vector, with `"parameters"` the length of the parameters' shift.
    - `influence_eval_loss` (`float32`, with an `eval_dataset`): the predicted change of the mean held-out loss;
      positive: removing the row hurts.
    - `influence_features` (`List(float32, d)`, d at most 64): the inputs of the last linear layer (projected, and of
      tokens their mean), which selection represents along with the influence; not there where logits come otherwise.
    - `influence_check` (`int64`): a check sum, by which it is noticed if scores or rows are altered afterwards.

    A row is removed from its batches. Where the loss is a mean over tokens (`num_items_in_batch`, or a micro-batch's
    own) the others weigh more without its tokens: `(S - s_i) / (N - n_i)` for a sum S of losses over N tokens. Where
    it is a mean over rows another row would take the place, and the denominator stays.

    What to trust: norms, groups and subsets; not the sign of one row's effect on the held-out loss. The model is
    scored in eval mode: dropout and BatchNorm make scores less faithful, and a warning says so where the recomputed
    gradient is not the recorded one; rows that are random take `draws`.

    Args:
        dataset (`Dataset` or `Trainer`):
            The rows that the Trainer got as `train_dataset`, in the same order; further columns are fine. Or the
            Trainer itself, whose `train_dataset`, `model`, `data_collator` and `eval_dataset` are then taken where no
            others are passed: trl's Trainers train on rows of their own making. With `train_dataset`, other rows, of
            which an `IterableDataset` is read once, and written to the record with its scores.
        trajectory (`str`, `Path` or `Trajectory`):
            What [`TrajectoryCallback`] recorded.
        model (`nn.Module`, *optional*):
            The trained model, by default the Trainer's. It is left as it is, and compared with the record; only
            parameters in half precision are copied.
        eval_dataset (`Dataset`, *optional*):
            Held-out rows, neither in the training nor in the test set. Without it, queries are about training rows.
        directions (`int`, *optional*, defaults to 64):
            k, the number of queries.
        space (`str`, *optional*, defaults to `"outputs"`):
            `"outputs"`: random signed sums of held-out logits; `"parameters"`: random projections of the parameters.
        mode (`str`, *optional*, defaults to `"expected"`):
            `"expected"`: in expectation over the order of batches, rows drawn as often as the record shows;
            `"visits"`: through the row's own recorded visits.
        curvature (`str`, *optional*, defaults to `"auto"`):
            `"exact"`, `"gauss-newton"`, `"fisher"` (cheapest) or `"none"`; auto: Gauss-Newton for Adam; for SGD, pairs
            and `loss(model, batch)` exact where the engine is dense. Gauss-Newton is multiplied by how much more the
            loss curves along the run's steps, which is measured first.
        batch_size (`int`, *optional*, defaults to 32):
            Rows in one forward pass over rows, fewer where memory runs out; the run's steps keep their own
            micro-batches. For language models the default is no more than a micro-batch of the run.
        num_proc (`int`, *optional*):
            Processes that write the columns, as in `Dataset.map`.
        data_collator (`Callable`, *optional*):
            As given to the Trainer. By default rows are stacked, and token sequences padded.
        loss (`Callable`, *optional*):
            Each row's loss, where the run was trained on another one than the model's own (class weights, weights in a
            column, distillation, `compute_loss_func`): `(logits, labels)` or `(logits, labels, inputs)` to losses of
            shape `(batch,)`, or to a pair of these and of their weights where the mean was weighted. `inputs` holds
            all that the collator made. A function whose parameters are named `(model, batch)` computes the losses by
            itself, for rows of several sequences or models without logits; `batch` holds what the collator made, rows
            first (of pairs `(batch, 2, ...)`). What the Trainer multiplied the mean by is measured; its own label
            smoothing, trl's DPOTrainer and its RewardTrainer need no `loss`.
        seed (`int`, *optional*, defaults to 0):
            Seed of the random directions.
        column (`str`, *optional*, defaults to `"influence"`):
            Name of the columns.
        engine (`str`, *optional*, defaults to `"auto"`):
            `"dense"` carries k vectors of the parameters' length through the window: exact, for small models.
            `"projected"` sketches every visit's gradient once, keeps the sketches with the trajectory, and sweeps in
            their dimensions: any k in about the time of one pass over the window. Where the sketches would take more
            than half of the free disk, only those between two snapshots are there at a time. auto: by size.
        train_dataset (`Dataset` or `Trainer`, *optional*):
            What the Trainer got, or the Trainer, where `dataset` holds other rows, such as a pool of candidates. Their
            columns then tell minus what adding a row would have done. Only in the mode `"expected"`. A sketched run
            scores them some at a time, in memory that does not grow with their number, without `num_proc`.
        max_memory (`int`, *optional*):
            Bytes that a dense sweep may take; with fewer it goes over the window several times. By default what is
            free.
        until (`int`, *optional*):
            Scores the model as it was after this many steps: later ones do not count. One of
            `Trajectory.open(trajectory).ends`. By default the step whose parameters `model` has, such as the best
            checkpoint's after `load_best_model_at_end` (a warning says so), or the run's last.
        draws (`int`, *optional*, defaults to 1):
            Where rows are random (`set_transform` with random crops, masking, a collator that draws), scores are the
            mean over so many draws, each of which takes the time of a scoring; 8 are many enough for most. Rows
            without chance are scored once.

    Rows that were scored with the same arguments from the same run can be concatenated; those that were scored in
    different ways `datasets` refuses to concatenate, because their scores cannot be compared.

    Under torchrun or `accelerate launch` call it in every process: they share the work, and each returns all rows.

    Returns:
        `Dataset`: the same rows with the columns; a second call with the same arguments comes from the cache.

    Example:

    ```py
    >>> scored = add_influence(trainer, "run/trajectory")
    >>> kept = prune(scored, keep=0.5).selection.apply(raw_rows)
    ```

    Raises:
        `TrajectoryError`: for a damaged trajectory, or one of another dataset or model.
        `UnsupportedError`: for an optimizer or a loss that has no adjoint here.
        `TypeError`, `ValueError`: for arguments that cannot be worked with.
    """
    processes = Processes.current()
    config = ScoringConfig(
        version=VERSION,
        engine=engine,
        mode=mode,
        space=space,
        curvature=curvature,
        directions=directions,
        seed=seed,
        column=column,
        until=until,
        draws=draws,
    )
    given = Given.of(
        dataset,
        train_dataset=train_dataset,
        model=model,
        eval_dataset=eval_dataset,
        data_collator=data_collator,
    )
    dataset, train_dataset, eval_dataset = given.dataset, given.train_dataset, given.eval_dataset
    model, data_collator = given.trained_model, given.data_collator
    check_arguments(config, dataset, eval_dataset, train_dataset, batch_size, num_proc, max_memory)
    check_shared(trajectory, "add_influence")
    whole = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(trajectory)
    check_dataset(dataset if train_dataset is None else train_dataset, whole)
    check_model(model, whole)
    of_logits = loss is None or not takes_model(loss)
    engine, curvature = choose_engine(
        engine, curvature, whole.manifest, directions, of_logits=of_logits, vocabulary=vocabulary_of(model)
    )
    digest = None if eval_dataset is None else content_digest(eval_dataset)
    config = replace(config, engine=engine, curvature=curvature, eval_digest=digest)
    if eval_dataset is None:
        logger.warning("No eval_dataset: queries are about training rows, and no held-out loss is predicted.")
    trained = dataset if train_dataset is None else train_dataset
    batch_size = rows_of_a_pass(batch_size, model, whole.steps())
    replay = Replay.of(trained, whole, model, data_collator=data_collator, loss=loss)
    record = replay.end(until)
    check_window(record)
    config = replace(config, until=None if len(record) == len(whole) else record.window[1])
    streamed = isinstance(dataset, IterableDataset)
    targets = replay.rows if train_dataset is None or streamed else replay.rows.of(dataset)
    held_out = None if eval_dataset is None else replay.rows.of(eval_dataset)
    with doubts() as found_doubts:
        config = replace(config, draws=check_chance(replay.rows, held_out, draws))
    in_parts = streamed or (train_dataset is not None and engine == "projected")
    scorer = Scorer(replay, targets, held_out, config, batch_size=batch_size, max_memory=max_memory, in_parts=in_parts)
    columns = InfluenceColumns(column)
    made = Features({columns.vector: List(Value("float32"), length=directions), columns.norm: Value("float32")})
    if eval_dataset is not None:
        made[columns.eval_loss] = Value("float32")
    found = find_features(replay.objective, replay.theta(replay.last), targets, columns.features)
    if found is not None:
        made[columns.features] = List(Value("float32"), length=found.width)
    swept = [VERSION, record.digest, compat.fingerprint(trained), replay.objective.digest(), loss, data_collator]
    asked = [swept, config.to_dict(), None if eval_dataset is None else compat.fingerprint(eval_dataset)]
    # The record keeps the scores: a dataset in memory has no cache of its own.
    start = time.perf_counter()
    # What a stream yields is known once it was read.
    rows_digest = processes.broadcast(uuid4().hex) if streamed else compat.fingerprint(dataset)
    fingerprint = Hasher.hash([rows_digest, asked])
    check_same(fingerprint, "add_influence")
    cache = SharedCache(record.path / "scores", processes)
    works = works_of(cache.directory, swept, config.draws)
    kept = processes.broadcast(_complete(cache.directory, fingerprint))
    if not kept:
        with doubts() as noticed:
            scorer.prepare(works, fingerprint)
        found_doubts += noticed
    pool, file = PoolScorer(scorer, found), cache.directory / f"{fingerprint}.arrow"
    whole_scorer = scorer if found is None else WithFeatures(scorer, found)
    writable = os.access(cache.directory, os.W_OK)  # complete scores can be read by whoever may not add to them
    with cache.in_use() if writable else nullcontext():
        told = reading(cache, fingerprint) if kept else writing("Scores", cache.directory)
        with processes.main_first(), told:
            if streamed and not file.exists():
                score_stream(dataset, lambda part: pool.of(replay.rows.of(part)), made, file)
            scored = (
                Dataset.from_file(str(file))
                if streamed
                else dataset.map(
                    pool if in_parts else whole_scorer,
                    batched=True,
                    batch_size=PART if in_parts else batch_size,
                    with_indices=True,
                    num_proc=None if in_parts else num_proc,
                    features=Features({**dataset.features, **made}),
                    new_fingerprint=fingerprint,
                    cache_file_name=str(file),
                    desc="Writing scores",
                )
            )
        rows = len(scored) if streamed else len(dataset)
        check_scores(scored, cache, fingerprint, list(made), rows=rows, fresh=not kept)
        curvature_of_loss = cache.value(
            f"held-out-{Hasher.hash(asked)}.json",
            lambda: logit_curvature(replay, held_out, batch_size),
            float | None,
        )
        known_doubts = cache.value(f"doubts-{fingerprint}.json", lambda: found_doubts, tuple[str, ...])
    for sentence in known_doubts if kept else ():
        if sentence not in found_doubts:
            logger.warning(sentence)
    if writable:
        for work in works:
            work.remove(f"effects-{fingerprint}-*")
        works[0].remove_superseded()
    first, last = record.window
    log_scoring({"rows": len(scored), "seconds": time.perf_counter() - start, "steps_swept": last - first})
    trained_columns = [name for name in scored.column_names if name in record.dataset_columns]
    other_columns = [name for name in scored.column_names if name not in (*record.dataset_columns, *columns)]
    known = ScoringRecord(
        config,
        RecordedRun.of(record.digest, record.manifest.to_dict()),
        recorded_share=(last - first) / len(record),
        held_out_curvature=curvature_of_loss,
        trained_columns=tuple(trained_columns),
        other_columns=tuple(other_columns),
        candidates=train_dataset is not None,
        doubts=known_doubts,
    )
    return with_scoring(with_checks(scored, column, trained_columns, other_columns), known)


def _complete(cache: Path, fingerprint: str) -> bool:
    """Whether the scores are there, from one process or from as many as wrote them."""
    shards = list(cache.glob(f"{fingerprint}_*_of_*.arrow"))
    return (cache / f"{fingerprint}.arrow").exists() or any(
        len(list(cache.glob(f"{fingerprint}_*_of_{file.stem[-5:]}.arrow"))) == int(file.stem[-5:]) for file in shards
    )
