"""`attribute`: which training rows made the model say this?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import nn
from transformers import Trainer

from hf_prune._core import compat
from hf_prune._core.config import AttributionConfig, ScoringConfig
from hf_prune._core.doubts import doubts
from hf_prune.attribution.queries import Asked, pad_right, tokenized
from hf_prune.attribution.result import Attribution, Query, first_rows, last_rows
from hf_prune.attribution.row_tokens import labelled_ids, row_parts, with_shared
from hf_prune.attribution.words import RowWords
from hf_prune.errors import UnsupportedError
from hf_prune.influence.api import VERSION
from hf_prune.influence.checks import check_arguments, check_chance, check_dataset, check_model, check_window
from hf_prune.influence.engine import choose_engine
from hf_prune.influence.loss_queries import LossQueries, counted_tokens
from hf_prune.influence.predictor import Predictor, check_same, check_shared, works_of
from hf_prune.model.losses import CAUSAL_CROSS_ENTROPY, takes_model
from hf_prune.model.micro_batches import rows_of_a_pass
from hf_prune.model.replay import Replay
from hf_prune.model.rows import Rows
from hf_prune.model.token_head import vocabulary_of
from hf_prune.model.trainer import Given
from hf_prune.trajectory.trajectory import Trajectory

logger = logging.getLogger(__name__)

# Bytes that gradients of queries may take, and the most queries that are swept at once.
BUDGET, AT_ONCE = 1 << 30, 256


def attribute(
    trajectory: str | Path | Trajectory,
    queries: Any,
    *,
    dataset: Dataset | Trainer,
    model: nn.Module | None = None,
    k: int = 10,
    processing_class: Any = None,
    tokens: str | None = None,
    mode: str = "expected",
    engine: str = "auto",
    curvature: str = "auto",
    batch_size: int | None = None,
    data_collator: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    train_dataset: Dataset | None = None,
    max_memory: int | None = None,
    until: int | None = None,
    draws: int = 1,
) -> Attribution:
    """
    Says which training rows made the model say this.

    For each query the influence of each row is the predicted change of the query's loss (the mean over its labelled
    tokens) if the row is removed, in the sense of `influence_eval_loss` of [`add_influence`]: positive means that
    without the row the model would say it less readily, so the row helped; negative that the row spoke against it.
    All queries go back through the recorded window together, so many cost little more than one.

    Args:
        trajectory (`str`, `Path` or `Trajectory`):
            What [`TrajectoryCallback`] recorded.
        queries (`str`, `list` or `Dataset`):
            What the model said. Each is a text; `{"prompt": ..., "completion": ...}` (of texts, or of messages); or a
            chat, a list of `{"role", "content"}` that ends with the assistant's, or `{"messages": that list}`. They
            are tokenised as they stand, without an end-of-sequence token; the loss is that of the completion, and with
            `"span": text` that of the tokens of the completion that the text is in. A `Dataset` that holds tokens, or
            no prompts and messages, is taken as rows prepared as those for training, with labels: of classes too.
        dataset (`Dataset` or `Trainer`):
            The rows that the Trainer got as `train_dataset`, in the same order; or the Trainer itself, which also
            stands for `model`, `data_collator` and `processing_class`.
        model (`nn.Module`, *optional*):
            The trained model; takes a Trainer if left out. It is copied, left as it is, and compared with the record.
        k (`int`, *optional*, defaults to 10):
            Rows at the top and at the bottom of each query that are shown.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer, for queries as text or chat, and to show rows that have no text column.
        tokens (`str`, *optional*):
            `"query"`: also the influence on each token of each query, whose mean is the query's; each token takes as
            much work as a query. `"row"`: also the parts that each labelled token of the rows shown has in their
            influence, whose sum is the row's.
        mode (`str`, *optional*, defaults to `"expected"`):
            `"expected"`: in expectation over the order of batches, which names rows that taught something early as
            well. `"visits"`: through the row's own recorded visits, nearer to the window trained again without the
            row; rows that were visited only before the window have no influence.
        engine (`str`, *optional*, defaults to `"auto"`):
            `"dense"` or `"projected"`, by default the one that `add_influence` takes; what it sketched is used again.
        curvature (`str`, *optional*, defaults to `"auto"`):
            As in [`add_influence`].
        batch_size (`int`, *optional*, defaults to 32):
            Rows and queries in one forward pass.
        data_collator (`Callable`, *optional*):
            As given to the Trainer.
        loss (`Callable`, *optional*):
            As in [`add_influence`].
        train_dataset (`Dataset`, *optional*):
            What the Trainer got, where `dataset` holds other rows, such as a pool of candidates: influence is then
            minus what adding the row would do. Only in the mode `"expected"`.
        max_memory (`int`, *optional*):
            Bytes that a dense sweep may take. By default what is free.
        until (`int`, *optional*):
            Asks the model as it was after this many steps, as in [`add_influence`].
        draws (`int`, *optional*, defaults to 1):
            Where rows are random, the mean over so many draws.

    Returns:
        [`Attribution`]: `top(i)` and `bottom(i)` list rows with their texts, `influence` is the whole matrix.

    Raises:
        `TrajectoryError`: for a damaged trajectory, or one of another dataset or model.
        `UnsupportedError`: for an optimizer or a loss that has no adjoint here.
        `TypeError`, `ValueError`: for arguments that cannot be worked with.

    Example:

    ```py
    >>> query = {"prompt": "Where is Zorland?", "completion": " In the sea."}
    >>> found = attribute("run/trajectory", query, dataset=trainer, k=5)
    >>> for row in found.top(0):
    ...     print(f"{row.influence:+.4f}", row.content.text)
    ```
    """
    config = AttributionConfig(
        version=VERSION, engine=engine, mode=mode, curvature=curvature, k=k, tokens=tokens, until=until, draws=draws
    )
    given = Given.of(dataset, train_dataset=train_dataset, model=model, data_collator=data_collator)
    trainer = dataset if train_dataset is None else train_dataset
    if processing_class is None and isinstance(trainer, Trainer):
        processing_class = trainer.processing_class
    dataset, train_dataset, data_collator = given.dataset, given.train_dataset, given.data_collator
    check_arguments(ScoringConfig(mode=mode, directions=1), dataset, None, train_dataset, batch_size, None, max_memory)
    check_shared(trajectory, "attribute")
    whole = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(trajectory)
    trained = dataset if train_dataset is None else train_dataset
    check_dataset(trained, whole)
    check_model(given.trained_model, whole)
    of_logits = loss is None or not takes_model(loss)
    engine, curvature = choose_engine(
        engine,
        curvature,
        whole.manifest,
        ScoringConfig.directions,
        of_logits=of_logits,
        vocabulary=vocabulary_of(given.trained_model),
    )
    replay = Replay.of(trained, whole, given.trained_model, data_collator=data_collator, loss=loss)
    record = replay.end(until)
    check_window(record)
    targets = replay.rows if train_dataset is None else replay.rows.of(dataset)
    asked, words = _asked(queries, replay.rows, processing_class)
    if asked.collator is pad_right:
        _check_continues_text(replay)
    with doubts() as of_rows:
        draws = check_chance(replay.rows, asked, draws)
    ended = None if len(record) == len(whole) else record.window[1]
    config = replace(config, engine=engine, curvature=curvature, until=ended, draws=draws)
    if tokens == "row" and targets.chance.number is not None:
        raise UnsupportedError("The tokens of rows that are random cannot be told apart: leave out tokens='row'.")
    _warn_of_unvisited(replay, mode)
    swept = [VERSION, record.digest, compat.fingerprint(trained), replay.objective.digest(), loss, data_collator]
    works = works_of(record.path / "scores", swept, config.draws)
    batch_size = rows_of_a_pass(batch_size, given.trained_model, whole.steps())
    predictor = Predictor(replay, targets, works, config, batch_size=batch_size, max_memory=max_memory)
    key = Hasher.hash([swept, config.to_dict(), compat.fingerprint(dataset), compat.fingerprint(asked.dataset)])
    check_same(key, "attribute")
    search = _Search(predictor, asked, RowWords(dataset, processing_class, record.id_column), config)
    with doubts() as of_run:
        predictor.check()
        found = search.run(key, words, record.digest)
    works[0].remove_superseded()
    return replace(found, doubts=(*of_rows, *of_run))


class _Search:
    """
    One call of [`attribute`].

    Args:
        predictor (`Predictor`): what is asked.
        asked (`Rows`): the queries.
        words (`RowWords`): says what rows are.
        config (`AttributionConfig`): how to search.
    """

    def __init__(self, predictor: Predictor, asked: Rows, words: RowWords, config: AttributionConfig):
        self.predictor, self.asked, self.words, self.config = predictor, asked, words, config
        self.objective = predictor.replay.objective
        self.by_tokens = self.config.tokens == "query"

    def run(self, key: str, words: list[Asked], digest: str) -> Attribution:
        """Searches chunk by chunk of the queries, so that memory does not grow with their number."""
        queries = self._queries(words)
        influence, by_token, parts = [], [], []
        for part in self._chunks(queries):
            rows = LossQueries(self.asked.select(part), self.by_tokens)
            own = f"{key}-{part.start:06d}"
            shifts = self.predictor.shifts(rows, own).T.astype(np.float32)
            if self.by_tokens:
                sizes = np.cumsum([len(queries[number].tokens) for number in part])[:-1]
                by_token += np.split(shifts, sizes)
                shifts = np.stack([values.mean(0) for values in by_token[-len(part) :]])
            influence.append(shifts)
            if self.config.tokens == "row":
                parts += self._row_parts(rows, own, shifts)
            for work in self.predictor.works:
                work.remove(f"effects-{own}-*")
        matrix = np.concatenate(influence)
        shown = sorted({int(row) for own in matrix for row in self._shown(own)})
        contents = self.words(shown)
        if self.config.tokens == "row":
            contents = {row: replace(one, tokens=self._row_tokens(row)) for row, one in contents.items()}
        return Attribution(self.config, tuple(queries), matrix, contents, digest, tuple(by_token), tuple(parts))

    def _shown(self, influence: np.ndarray) -> np.ndarray:
        return np.concatenate([first_rows(influence, self.config.k), last_rows(influence, self.config.k)])

    @torch.no_grad()
    def _queries(self, words: list[Asked]) -> list[Query]:
        """The queries with their losses and tokens."""
        theta, found = self.predictor.replay.theta(self.predictor.replay.last), []
        for numbers, batch in self.asked.batches(self.predictor.batch_size):
            losses, items = self.objective.losses(theta, batch).tolist(), self.objective.items(batch).tolist()
            tokens: list[tuple[str, ...]] = [()] * len(batch)
            if self.by_tokens:
                ids = labelled_ids(batch, counted_tokens(self.objective.loss(batch), batch))
                tokens = [self.words.decoded(own) for own in ids]
            for number, loss, item, own in zip(numbers, losses, items, tokens, strict=True):
                if not item > 0:
                    raise ValueError(f"Query {number} has no label to take a loss of: label what the model said.")
                found.append(Query(words[number].completion, words[number].prompt, loss, own))
        return found

    def _chunks(self, queries: list[Query]) -> Iterator[range]:
        """Queries that are swept together, whose gradients fit into the budget."""
        length = sum(self.objective.sizes)
        room = min(AT_ONCE, max(1, BUDGET // (4 * length))) if self.config.engine == "dense" else AT_ONCE
        start, used = 0, 0
        for number, query in enumerate(queries):
            size = len(query.tokens) if self.by_tokens else 1
            if used and used + size > room:
                yield range(start, number)
                start, used = number, 0
            used += size
        yield range(start, len(queries))

    def _row_parts(self, queries: LossQueries, key: str, influence: np.ndarray) -> list[dict[int, np.ndarray]]:
        """The parts of the rows that are shown of each query."""
        wanted = [np.unique(self._shown(own)) for own in influence]
        found: list[dict[int, np.ndarray]] = []
        for engine in self.predictor.engines(key):
            every = np.unique(np.concatenate(wanted))
            slopes = engine.slopes(engine.encode(queries), self.config.mode, self.predictor.targets, every)
            found = row_parts(self.objective, self.predictor.targets, slopes, wanted)
        return [
            {row: self._whole(row, own.get(row), float(effects[row])) for row in rows.tolist()}
            for own, rows, effects in zip(found, wanted, influence, strict=True)
        ]

    def _whole(self, row: int, parts: np.ndarray | None, effect: float) -> np.ndarray:
        """The parts of a row, whose sum is its effect; a row that was not visited has parts of 0."""
        own = np.zeros(len(self._row_tokens(row))) if parts is None else parts
        return with_shared(own, effect).astype(np.float32)

    def _row_tokens(self, row: int) -> tuple[str, ...]:
        batch = self.predictor.targets.batch([row])
        return self.words.decoded(labelled_ids(batch, counted_tokens(self.objective.loss(batch), batch))[0])


def _asked(queries: Any, rows: Rows, processing_class: Any) -> tuple[Rows, list[Asked]]:
    """The queries as rows of the model's, and in words."""
    if isinstance(queries, Dataset) and _are_prepared(queries):
        if not len(queries):
            raise ValueError("There are no queries: pass at least one.")
        found = RowWords(queries, processing_class)(range(len(queries)))
        return rows.of(queries), [
            Asked(" · ".join(filter(None, (one.text, one.label))) or f"row {number}") for number, one in found.items()
        ]
    one = isinstance(queries, str | dict) or (
        isinstance(queries, list) and bool(queries) and all(isinstance(m, dict) and "role" in m for m in queries)
    )
    dataset, words = tokenized([queries] if one else queries, processing_class)
    return rows.of(dataset, pad_right), words


def _are_prepared(queries: Dataset) -> bool:
    """Whether these are rows as those for training; prompts may stand beside tokens that were made of them."""
    return "input_ids" in queries.column_names or not {"prompt", "messages"} & set(queries.column_names)


def _check_continues_text(replay: Replay) -> None:
    """
    Raises:
        `UnsupportedError`: if the run's loss is not that of next tokens, so that it says nothing of a text.
    """
    batch = replay.rows.batch([0])
    causal = replay.objective.loss(batch).targets is CAUSAL_CROSS_ENTROPY.targets
    if not causal and not (replay.own_loss and replay.counts_tokens(batch)):
        raise UnsupportedError(
            "Queries as text are for models that were trained to go on with a text: pass a Dataset of rows that are "
            "prepared as those for training, with labels."
        )


def _warn_of_unvisited(replay: Replay, mode: str) -> None:
    if mode == "expected":
        return
    visited = np.unique(np.concatenate([replay.row_of(step.ids) for step in replay.steps()] or [np.empty(0, int)]))
    missing = len(replay.rows) - len(visited)
    if missing:
        logger.warning(
            f"{missing:,} of {len(replay.rows):,} rows were not visited in the recorded window, so their influence is "
            "0: ask with mode='expected', or record with window=1.0."
        )
