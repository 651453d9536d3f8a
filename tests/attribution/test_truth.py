"""
Rows that made a fine-tuned language model say something: against runs without them, made again by torch from the
ledger, and against what was planted.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hf_prune import attribute
from tests.attribution.facts import PLANTED, Taught, fact, losses, tokenizer

QUERIES = [
    fact(*PLANTED, 0),
    fact(*PLANTED, 1),
    fact("place5", "animal", "animal2", 2),
    fact("place9", "colour", "colour1", 0),
    fact("place14", "animal", "animal0", 1),
]


def correlations(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(own, real)[0, 1] for own, real in zip(found, true, strict=True)])


@pytest.fixture(scope="module")
def removed(taught: Taught) -> tuple[list[int], np.ndarray]:
    """Some rows, the planted among them, and what leaving out each does to each query's loss, `(Q, rows)`."""
    rows = sorted({*taught.planted, *range(0, len(taught.trainer.train_dataset), 6)})
    whole = losses(taught.again(), QUERIES)
    return rows, np.array([losses(taught.again({row}), QUERIES) - whole for row in rows]).T


def test_the_run_made_again_is_the_run(taught: Taught):
    for again, trained in zip(taught.again().parameters(), taught.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(again, trained, rtol=1e-3, atol=1e-5)


def test_a_querys_loss_is_the_models_own(taught: Taught):
    found = attribute(taught.path, QUERIES, engine="projected", mode="visits", **taught.asking)
    np.testing.assert_allclose([query.loss for query in found.queries], losses(taught.again(), QUERIES), rtol=1e-3)


def test_each_rows_influence_on_each_query_is_that_of_a_run_without_it(taught: Taught, removed):
    rows, true = removed
    found = attribute(taught.path, QUERIES, engine="dense", mode="visits", **taught.asking).influence[:, rows]
    assert correlations(found, true).min() > 0.9
    assert np.linalg.norm(found - true) < 0.4 * np.linalg.norm(true)
    sketched = attribute(taught.path, QUERIES, engine="projected", mode="visits", **taught.asking).influence[:, rows]
    assert correlations(sketched, true).mean() > 0.9
    expected = attribute(taught.path, QUERIES, engine="dense", mode="expected", **taught.asking).influence[:, rows]
    assert correlations(expected, true).mean() > 0.85


def gradient_dots(taught: Taught) -> np.ndarray:
    """The products of a query's gradient with each row's at the trained parameters, `(Q, n)`: the plain rival."""
    model, words, rows = taught.again(), tokenizer(), taught.trainer.train_dataset

    def gradient(ids: list[int], labels: list[int]) -> torch.Tensor:
        model.zero_grad()
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    own = torch.stack([gradient(row["input_ids"], row["labels"]) for row in rows])
    asked = []
    for query in QUERIES:
        ids, prompt = (words(text)["input_ids"] for text in (query["prompt"] + query["completion"], query["prompt"]))
        asked.append(gradient(ids, [-100] * len(prompt) + ids[len(prompt) :]))
    return (torch.stack(asked) @ own.T).numpy()


def planted_first(taught: Taught, influence: np.ndarray) -> int:
    """How many of the three planted rows are among the first four, over two queries."""
    return sum(len({*np.argsort(-own)[:4].tolist()} & {*taught.planted}) for own in influence[:2])


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_rows_that_taught_the_planted_answer_come_first(engine: str, taught: Taught):
    found = attribute(taught.path, QUERIES[:2], engine=engine, k=4, **taught.asking)
    assert planted_first(taught, found.influence) >= (6 if engine == "dense" else 5)
    assert [row.row for row in found.top(0)] == np.argsort(-found.influence[0])[:4].tolist()


def test_the_influence_follows_the_truth_closer_than_gradient_products_do(taught: Taught, removed):
    rows, true = removed
    found = attribute(taught.path, QUERIES, engine="dense", mode="visits", **taught.asking).influence[:, rows]
    plain = gradient_dots(taught)[:, rows]
    assert correlations(found, true).mean() > correlations(plain, true).mean()


@pytest.mark.parametrize("engine", ["dense", "projected"])
def test_the_parts_of_a_rows_tokens_are_those_of_runs_without_their_labels(engine: str, taught: Taught):
    found = attribute(taught.path, QUERIES[:2], engine=engine, tokens="row", k=3, mode="visits", **taught.asking)
    whole = losses(taught.again(), QUERIES[:2])
    parts, true = [], []
    for row in taught.planted:
        count = len(found.rows[row].tokens)
        masked = [losses(taught.again(masked={row: token}), QUERIES[:2]) - whole for token in range(count)]
        parts.append(np.stack([found.row_parts[query][row] for query in range(2)], 1))
        true.append(np.array(masked))
    assert np.corrcoef(np.concatenate(parts).ravel(), np.concatenate(true).ravel())[0, 1] > 0.9


def test_of_the_row_that_taught_it_in_the_same_words_the_answer_acted(taught: Taught):
    found = attribute(taught.path, QUERIES[0], tokens="row", k=3, mode="visits", **taught.asking)
    same = next(row for row in found.top() if row.row == taught.planted[0])
    assert same.content.tokens[int(np.argmax(same.parts))] == PLANTED[2]


def test_of_a_query_the_answer_is_what_was_taught(taught: Taught):
    found = attribute(taught.path, QUERIES[0], tokens="query", k=3, mode="visits", **taught.asking)
    taught_most = found.token_influence[0][:, taught.planted].sum(1)
    assert found.queries[0].tokens[int(np.argmax(taught_most))] == PLANTED[2]


@torch.no_grad()
def last_token_loss(model: nn.Module, query: dict[str, str]) -> float:
    ids = torch.tensor([tokenizer()(query["prompt"] + query["completion"])["input_ids"]])
    logits = model(input_ids=ids).logits[0, -2]
    return float(nn.functional.cross_entropy(logits, ids[0, -1]))


def test_a_tokens_influence_is_that_of_runs_without_the_rows(taught: Taught):
    rows = [*taught.planted, 1, 11, 21, 31, 41, 51]
    found = attribute(taught.path, QUERIES[0], tokens="query", engine="dense", mode="visits", **taught.asking)
    whole = last_token_loss(taught.again(), QUERIES[0])
    true = [last_token_loss(taught.again({row}), QUERIES[0]) - whole for row in rows]
    assert np.corrcoef(found.token_influence[0][-1, rows], true)[0, 1] > 0.9
